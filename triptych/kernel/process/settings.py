"""Settings of a service, read once from the environment at the edge and passed in from there.

No module below `__main__` reads the environment. `docs/reference/configuration.md` is generated from these
classes, so each field says what it is for.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from triptych.kernel.process.log_file import MAX_BYTES

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def _default_instance() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class ServiceSettings(BaseSettings):
    """What every service needs to know. Environment prefix `TRIPTYCH_`."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_", frozen=True, extra="ignore")

    kafka: Annotated[str, Field(description="Bootstrap servers, `host:port[,host:port]`.")] = "127.0.0.1:9092"
    postgres: Annotated[
        SecretStr, Field(description="DSN of the service's own role, `postgresql://role:password@host:port/database`.")
    ]
    topic_prefix: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_-]*$", description="All topics are `<prefix>.<noun>`.")
    ] = "triptych"
    instance: Annotated[
        str,
        Field(description="Unique name of this process; also its static Kafka membership, so keep it over restarts."),
    ] = Field(default_factory=_default_instance)
    health_host: Annotated[str, Field(description="Address that the health endpoints listen on.")] = "127.0.0.1"
    health_port: Annotated[
        int, Field(ge=0, le=65535, description="Port of the health endpoints; 0 takes a free one.")
    ] = 0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"], Field(description="`json` for machines, `console` for people.")
    ] = "json"
    log_file: Annotated[
        Path | None,
        Field(
            description="File that the log, standard output and standard error go to, after what it holds already. "
            "It is shifted to NAME.1 when it is too large, and five of those stay."
        ),
    ] = None
    log_max_bytes: Annotated[int, Field(ge=10_000, description="Size at which that file is shifted.")] = MAX_BYTES
    batch_max_records: Annotated[
        int, Field(ge=1, le=10_000, description="Records that are taken from Kafka in one go.")
    ] = 500
    session_timeout_ms: Annotated[
        int, Field(ge=1_000, description="A process silent for this long loses its partitions.")
    ] = 10_000
    shutdown_timeout_ms: Annotated[
        int, Field(ge=100, description="After SIGTERM, work not finished by then is handed back.")
    ] = 8_000
    stuck_exit_ms: Annotated[
        int,
        Field(
            ge=0,
            description="A process with a loop that is stuck for this long ends itself with code 3. Its supervisor "
            "starts it again. /health/live names the loop, and a blocked event loop is one. At the start the limit is "
            "four times as long. 0: it never ends itself.",
        ),
    ] = 30_000
    inline_max_bytes: Annotated[
        int, Field(ge=1_024, description="Larger message bodies are stored in Postgres and sent by reference.")
    ] = 262_144
    max_deaths: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="A record that so many processes held alone when they died is dead-lettered unread.",
        ),
    ] = 3
    allow_failpoints: Annotated[
        Literal["", "i-know"], Field(description="`i-know`: this process may be made to die. For tests of crashes.")
    ] = ""
    failpoints: Annotated[
        Path | None,
        Field(description="Folder whose `<instance>/<fail point>` files arm fail points; refused unless allowed."),
    ] = None
    timestamps: Annotated[
        Path | None,
        Field(
            description="Folder to whose file `<instance>` this process writes when it passed which place of its loop. "
            "For `make bench-waterfall`."
        ),
    ] = None

    @field_validator("failpoints")
    @classmethod
    def _only_on_purpose(cls, folder: Path | None, info: ValidationInfo) -> Path | None:
        if folder is not None and info.data.get("allow_failpoints") != "i-know":
            raise ValueError(
                "fail points kill this process; unset it, or set TRIPTYCH_ALLOW_FAILPOINTS=i-know in a test"
            )
        return folder

    def topic(self, noun: str) -> str:
        """Return the full name of a topic, for example `triptych.results`."""
        return f"{self.topic_prefix}.{noun}"


def load_settings(settings_type: type[SettingsT]) -> SettingsT:
    """Read the settings, or end the process with code 2 and one line for each setting that is wrong."""
    try:
        return settings_type()
    except ValidationError as error:
        prefix = settings_type.model_config.get("env_prefix", "")
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            where = "set it in the environment; see docs/reference/configuration.md"
            sys.stderr.write(f"{prefix}{name}: {problem['msg']} ({where})\n")
        raise SystemExit(2) from None
