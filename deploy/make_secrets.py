"""Write the secrets that compose.yaml mounts: random passwords, and for each role the DSN it logs in with.

Run it once (`python3 deploy/make_secrets.py`). Files that are there already are left as they are, so a
secret of your own (a model provider's key in models.env, say) stays. It needs only Python.
"""

# ruff: noqa: INP001 - a script, not a package
from __future__ import annotations

import secrets
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATABASE = "triptych"
SERVER = f"postgres:5432/{DATABASE}"

MODELS = """\
# Models of providers, their keys and endpoints: docs/reference/models.md. One NAME=VALUE a line.
# A value here wins over deploy/models.env.
#TRIPTYCH_MODEL_STRONG=anthropic:claude-sonnet-4-5
#TRIPTYCH_MODEL_CHEAP=anthropic:claude-haiku-4-5
#ANTHROPIC_API_KEY=...
"""


def schemas(config: Path) -> list[str]:
    """Return the database schemas of the services and tools that a triptych.toml names."""
    table = tomllib.loads(config.read_text("utf-8"))
    return [*table["services"], *(f"tool_{name}" for name in table["tools"])]


def write(path: Path, text: str) -> str:
    """Write a secret unless it is there already, and give what the file says."""
    if not path.exists():
        # Containers read it under a user id of their own; the folder keeps everybody else out.
        path.touch(mode=0o644)
        path.write_text(text, "utf-8")
    return path.read_text("utf-8")


def main(folder: Path = HERE / "secrets", config: Path = HERE.parent / "examples/demo/triptych.toml") -> None:
    """Write what is missing."""
    folder.mkdir(mode=0o700, exist_ok=True)
    write(folder / ".gitignore", "*\n")
    owner = write(folder / "postgres-password", secrets.token_urlsafe(24))
    write(folder / "postgres-owner", f"postgresql://postgres:{owner}@{SERVER}")
    for name in (*schemas(config), "operator"):
        write(folder / name, f"postgresql://{DATABASE}_{name}:{secrets.token_urlsafe(24)}@{SERVER}")
    for name in ("helpdesk-token", "crm-key"):
        write(folder / name, secrets.token_urlsafe(24))
    write(folder / "models.env", MODELS)


if __name__ == "__main__":
    main()
