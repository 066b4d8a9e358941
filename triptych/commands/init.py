"""`triptych init`: a first triptych.toml with a tool and a playbook that work, or the files of the demo to change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.common.options import DEMO_CONFIG, AsJson
from triptych.commands.common.output import err, out, print_json
from triptych.kernel.errors import TriptychError

_TOOL, _TOOLS = "greetings", "my-tools"

_CONFIG = f"""\
# What `triptych up` starts. Postgres and Kafka are always there. After a change, `triptych up` applies it.
# Every key and placeholder: docs/how-to/operations.md and the comments in the triptych.toml that is shipped.

playbooks = "playbooks"

# For plans and judgements by a model name the models here and set the provider's key where `triptych up` is called:
# [env]
# TRIPTYCH_MODEL_STRONG = "anthropic:claude-sonnet-4-5"
# TRIPTYCH_MODEL_CHEAP = "anthropic:claude-haiku-4-5"

[services.executor]
module = "triptych.executor"
migrations = ["triptych.executor:migrations"]

[services.planner]
module = "triptych.planner"
migrations = [
    "triptych.kernel:migrations/worker",
    "triptych.kernel:migrations/models",
    "triptych.planner:migrations",
]
pass_env = ["ANTHROPIC_*", "AWS_*", "AZURE_*", "GOOGLE_*", "OLLAMA_*", "OPENAI_*"]

[services.critic]
module = "triptych.critic"
migrations = ["triptych.kernel:migrations/worker", "triptych.kernel:migrations/models"]
pass_env = ["ANTHROPIC_*", "AWS_*", "AZURE_*", "GOOGLE_*", "OLLAMA_*", "OPENAI_*"]

# A tool is one more block: `triptych new tool NAME` writes its module, `triptych tools add` makes both of an API.
[tools.{_TOOL}]
adapter = "{_TOOL}:tool"
path = "{_TOOLS}"
"""

_PLAYBOOK = f"""\
name: greet
goal: Greet somebody by name.
input: {{type: object, required: [who], properties: {{who: {{type: string}}}}}}
tools: [{_TOOL}.greet]
plan:
  pattern: fixed
  steps:
    - {{id: greet, operation: {_TOOL}.greet, arguments: {{who: "${{{{ input.who }}}}"}}, expect: result.status == 'ok'}}
output: {{text: "${{{{ steps.greet.data.text }}}}"}}
budgets: {{tool_calls: 5, usd: 0, wall_ms: 30000}}
"""


class AlreadyThereError(TriptychError):
    """A file that would be written is there already."""

    def __init__(self, file: Path) -> None:
        self.file = file
        super().__init__(f"{file} is there already. Nothing was written; choose another folder with --dir")


def init(
    *,
    directory: Annotated[Path, typer.Option("--dir", help="Where to write it.")] = Path(),
    demo: Annotated[
        bool, typer.Option("--demo", help="Copy what `triptych demo` runs instead: configuration, playbooks, tools.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a first triptych.toml, with a tool and a playbook to begin with."""
    written = _copy_demo(directory) if demo else _write_first(directory)
    if as_json:
        print_json({"files": [str(file) for file in written]})
        return
    for file in written:
        out.print(str(file), soft_wrap=True)
    there = "" if directory == Path() else f"in {directory}: "
    task = "tickets.jsonl" if demo else '--playbook greet --input \'{"who": "Ana"}\''
    err.print(f"{there}triptych up, then triptych submit {task} --wait", markup=False, style="dim", soft_wrap=True)


def _copy_demo(directory: Path) -> list[Path]:
    """Copy the files of the demo. Raises AlreadyThereError before anything is written."""
    source = DEMO_CONFIG.parent
    found = sorted(file for file in source.rglob("*") if file.is_file())
    copies = {file: directory / file.relative_to(source) for file in found}
    _check_free(copies.values())
    for file, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return [*copies.values()]


def _write_first(directory: Path) -> list[Path]:
    """Write a configuration with one tool and one playbook. Raises AlreadyThereError before anything is written."""
    from triptych.tools.scaffold import scaffold  # noqa: PLC0415 - the tools' runtime is slow to import

    files = {directory / "triptych.toml": _CONFIG, directory / "playbooks" / "greet.yaml": _PLAYBOOK}
    _check_free(files)
    (directory / _TOOLS).mkdir(parents=True, exist_ok=True)
    written = [*files, *scaffold(_TOOL, directory / _TOOLS)]
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return written


def _check_free(files: Iterable[Path]) -> None:
    for file in files:
        if file.exists():
            raise AlreadyThereError(file)
