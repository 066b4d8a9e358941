"""What stands under `options` of an MCP server in triptych.toml. Secrets are named here, never written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PositiveInt, model_validator

from triptych.schemas.contract import Effect
from triptych.tools.sdk.source import Options

TimeoutMs = Annotated[int, Field(gt=0, le=600_000)]


class Override(BaseModel):
    """What is known of one operation better than the server says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    effect: Effect | None = None
    """Instead of what the server's annotations amount to."""
    timeout_ms: TimeoutMs | None = None
    key_argument: str | None = None
    """The argument that takes the idempotency key. The runtime fills it in; no planner sees it."""


class McpOptions(Options):
    """One MCP server: how it is reached, what it may be asked for, and where its contracts are pinned."""

    pins: str
    """The file with the contracts, as `triptych tools add mcp` writes it."""
    command: tuple[str, ...] = ()
    """Starts a server that speaks over its standard input and output."""
    cwd: str = "."
    """Where it is started; in its own home where it cannot be there."""
    user: str | None = None
    """The user that it runs as, by name or number. By default `nobody` if this process is root, else its user."""
    env: tuple[str, ...] = ()
    """Variables of this process that the server gets too; of the rest it sees only PATH and LANG."""
    url: HttpUrl | None = None
    """The address of a server that speaks streamable HTTP."""
    url_env: str | None = None
    """The variable that holds the address, where it is known only when the stack has started."""
    token_env: str | None = None
    """The variable with the bearer token for `url`."""
    headers_env: Mapping[str, str] = Field(default_factory=dict)
    """Headers for `url`, each with the variable that holds its value."""
    only: tuple[str, ...] = ()
    """The operations to offer; all when it is empty."""
    timeout_ms: TimeoutMs = 30_000
    """The time limit of a call, where `operations` has no other."""
    concurrency: PositiveInt = 16
    """The most calls at the same time."""
    operations: Mapping[str, Override] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> McpOptions:
        if bool(self.command) + (self.url is not None) + (self.url_env is not None) != 1:
            raise ValueError("give either command (a server to start) or url or url_env (a server that runs)")
        if self.command and (self.token_env or self.headers_env):
            raise ValueError("token_env and headers_env are for url; a command gets its secrets through env")
        if not self.command and self.env:
            raise ValueError("env is for command; a url gets its secrets through token_env and headers_env")
        if not self.command and self.user:
            raise ValueError("user is for command; nothing is started for a url")
        return self
