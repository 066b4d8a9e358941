"""Write a tool that works, with a test that passes: `triptych new tool NAME`."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from triptych.kernel.errors import TriptychError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")

_MODULE = Template('''\
"""The $name tool.

Run it with `triptych up` by adding this to triptych.toml, and allow it in a playbook (`tools: [$name.greet]`):

    [tools.$name]
    adapter = "$name:tool"
    path = "$directory"
"""

from pydantic import BaseModel

from triptych import Effect, ErrorCode, Tool, ToolFailure

tool = Tool("$name")


class Greeting(BaseModel):
    text: str


@tool.operation(effect=Effect.READ, timeout_ms=5_000)
async def greet(who: str) -> Greeting | None:
    """Greet a person by name. Empty for a name that is not known."""
    if who == "unknown":
        return None
    if who == "everybody":
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, "who: name one person")
    return Greeting(text=f"Hello {who}")
''')

_TEST = Template('''\
"""What the $name tool promises."""

import asyncio

from $name import tool
from triptych.schemas import ErrorCode, Result
from triptych.tools.testing import call


def test_it_greets_by_name():
    assert asyncio.run(call(tool, "greet", {"who": "Ana"})) == Result.ok({"text": "Hello Ana"})


def test_a_name_that_is_not_known_is_empty_and_not_an_error():
    assert asyncio.run(call(tool, "greet", {"who": "unknown"})) == Result.empty()


def test_an_argument_of_the_wrong_type_is_named():
    result = asyncio.run(call(tool, "greet", {"who": 7}))
    assert result.error.code is ErrorCode.INVALID_ARGUMENTS
    assert "arguments.who" in result.error.message
''')


class ScaffoldError(TriptychError):
    """The files were not written."""


def scaffold(name: str, directory: Path) -> list[Path]:
    """Write `<name>.py` and `test_<name>.py` into `directory`; gives their paths.

    The module's docstring says how to add the tool to triptych.toml.

    Raises:
        ScaffoldError: the name cannot be a module's and a tool's, or a file is there already.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ScaffoldError(
            f"{name!r} cannot name a tool: use at most 31 lower-case letters, digits and _, a letter first"
        )
    files = {directory / f"{name}.py": _MODULE, directory / f"test_{name}.py": _TEST}
    for path in files:
        if path.exists():
            raise ScaffoldError(f"{path} is there already; choose another name, or delete it")
    directory.mkdir(parents=True, exist_ok=True)
    for path, template in files.items():
        path.write_text(template.substitute(name=name, directory=directory.as_posix()), "utf-8")
    return list(files)
