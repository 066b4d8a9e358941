"""Which of the shipped adapters needs an extra of the package."""

from __future__ import annotations

from typing import Final

from triptych.kernel.process.extras import require_extra

_EXTRAS: Final = {"triptych.tools.adapters.mail": "mail", "triptych.tools.adapters.mcp": "mcp"}


def require_adapter(adapter: str, tool: str) -> None:
    """Check that the extra of an adapter is installed. `adapter` is `MODULE:ATTRIBUTE`, as triptych.toml has it.

    Raises:
        MissingExtraError: it is not installed.
    """
    module = adapter.partition(":")[0]
    for package, extra in _EXTRAS.items():
        if module == package or module.startswith(f"{package}."):
            require_extra(extra, f"tool {tool}")
