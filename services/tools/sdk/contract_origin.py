"""Where a tool's contracts come from, when that is outside of its code: to ask again, and to keep what was accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych.tools.sdk.tool import Tool


@dataclass(frozen=True, slots=True)
class ContractOrigin:
    """The file that keeps what was accepted, and how to ask its source again."""

    file: Path
    fetch: Callable[[], Awaitable[bytes]]
    """What the source says now, as it would be kept."""
    build: Callable[[bytes], Tool]
    """The tool that this would make."""
    is_watched: bool = False
    """Whether the adapter itself compares while it runs."""
    reload: Callable[[bytes], None] | None = None
    """Lets such an adapter take over what the file keeps now."""
