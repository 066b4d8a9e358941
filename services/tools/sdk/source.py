"""Where a tool that is built from configuration comes from: its name, its options, and the folder they speak of.

A factory (`def tool(source: Source) -> Tool`) stands where a ready Tool may stand. Options never hold a secret;
they name the environment variable that does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import codec

NAME, OPTIONS, DIRECTORY = "TRIPTYCH_TOOL_NAME", "TRIPTYCH_TOOL_OPTIONS", "TRIPTYCH_TOOL_DIRECTORY"

FETCHED_MAX = 32
"""So many of a kind are remembered; an upstream may still quote one that has just been replaced."""

OptionsT = TypeVar("OptionsT", bound="Options")


class Options(BaseModel):
    """What stands under `options` in a tool's table of triptych.toml: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Source:
    """One tool's table in triptych.toml, as its process sees it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    directory: Path = field(default_factory=Path)
    """Relative paths in options start here."""
    secrets: list[SecretStr] = field(default_factory=list, compare=False, repr=False)
    """What `secret` has given out and `learn` was told: the runtime masks these values in each answer."""
    fetched: dict[str, list[SecretStr]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """Return the source that the environment of this process describes.

        Raises:
            ConfigurationError: there is no name, or the options are not a JSON object.
        """
        name = os.environ.get(NAME)
        if not name:
            raise ConfigurationError(
                f"{NAME} is not set; a tool that is built from options needs the name of its table"
            )
        try:
            options = codec.decode(os.environ.get(OPTIONS, "{}"))
        except codec.InvalidJson as error:
            raise ConfigurationError(f"{OPTIONS} of tool {name} is not JSON: {error}") from None
        if not isinstance(options, dict):
            raise ConfigurationError(f"{OPTIONS} of tool {name} is not a JSON object")
        return cls(name, options, Path(os.environ.get(DIRECTORY, ".")))

    def environment(self) -> dict[str, str]:
        """Return what `from_environment` reads."""
        return {NAME: self.name, OPTIONS: codec.encode_text(self.options), DIRECTORY: str(self.directory)}

    def read(self, form: type[OptionsT]) -> OptionsT:
        """Return the options in their form.

        Raises:
            ConfigurationError: names every key that is wrong, and what is known there.
        """
        try:
            return form.model_validate(self.options)
        except ValidationError as error:
            told = []
            for problem in error.errors(include_url=False, include_input=False):
                key = ".".join(str(part) for part in ("tools", self.name, "options", *problem["loc"]))
                cure = f" (known: {', '.join(form.model_fields)})" if problem["type"] == "extra_forbidden" else ""
                told.append(f"{key}: {problem['msg']}{cure}")
            raise ConfigurationError("; ".join(told)) from None

    def path(self, relative: str) -> Path:
        """Return a file or folder that an option names."""
        return self.directory / relative

    def secret(self, variable: str) -> SecretStr:
        """Return the secret in an environment variable, whose name an option gave. It is kept out of every answer.

        Raises:
            ConfigurationError: it is not set.
        """
        self.secrets.append(SecretStr(self.variable(variable)))
        return self.secrets[-1]

    def learn(self, secret: str, kind: str = "token") -> None:
        """Keep out of every answer what was given out to this process later; of each kind the latest."""
        known = self.fetched.setdefault(kind, [])
        if any(each.get_secret_value() == secret for each in known):
            return
        known.append(SecretStr(secret))
        self.secrets.append(known[-1])
        if len(known) > FETCHED_MAX:
            oldest = known.pop(0)
            self.secrets[:] = [each for each in self.secrets if each is not oldest]

    def variable(self, variable: str) -> str:
        """Return an environment variable that does not hold a secret, such as an address.

        Raises:
            ConfigurationError: it is not set.
        """
        value = os.environ.get(variable)
        if not value:
            raise ConfigurationError(
                f"tool {self.name} needs {variable}, and it is not set; "
                f"give it under tools.{self.name}.env, or set it where the stack is started"
            )
        return value
