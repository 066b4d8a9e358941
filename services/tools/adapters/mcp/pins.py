"""The pinned contracts of an MCP server: what it offered when it was added, in a file beside triptych.toml.

A person reads and commits this file. The process of a tool only ever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import codec


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Hints(_Form):
    """What a server says of a tool's effect. Hints: nothing makes a server tell the truth."""

    read_only_hint: bool | None = None
    destructive_hint: bool | None = None
    idempotent_hint: bool | None = None
    open_world_hint: bool | None = None


class Execution(_Form):
    """How a tool must be called, in protocol 2025-11-25."""

    task_support: str | None = None


class PinnedTool(_Form):
    """One tool of an MCP server, in the words of the protocol."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    title: str | None = None
    description: str | None = None
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    annotations: Hints | None = None
    execution: Execution | None = None


@dataclass(frozen=True, slots=True)
class SkippedTool:
    """One tool of the server that is not offered, and why."""

    name: str
    why: str


class ServerIdentity(_Form):
    """Who offered them."""

    name: str | None = None
    version: str | None = None
    protocol: str | None = None


class Pins(_Form):
    """The whole file."""

    server: ServerIdentity = ServerIdentity()
    tools: tuple[PinnedTool, ...] = Field(min_length=1)
    left_out: Annotated[tuple[SkippedTool, ...], Field(exclude=True)] = ()
    """What could not be read when it was listed; it is told and not kept."""

    @classmethod
    def load(cls, file: Path) -> Pins:
        """Read a file of pins. Raises ConfigurationError that names it and the cure."""
        cure = "`triptych tools add mcp --replace` writes it again"
        try:
            return codec.read(cls, file.read_bytes(), limits=codec.DOCUMENT)
        except OSError as error:
            raise ConfigurationError(f"{file}: {error.strerror or error}; {cure}") from None
        except codec.InvalidJson as error:
            raise ConfigurationError(f"{file}: {error}; {cure}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigurationError(f"{file}: {where}: {first['msg']}; {cure}") from None

    def text(self) -> str:
        """Return the content of the file."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"
