"""The reference of the Python API: the names of `triptych.__all__`."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

import triptych
from generate.markdown import docstring, member_texts, page, table
from generate.messages import fields_table

INTRODUCTION = """\
`from triptych import NAME` has what applications and tools import. These names are the stable surface; all others may
change. `triptych.tools.testing` is for the tests of your own tools ([how to write one](../how-to/write-a-tool.md)).\
"""
_EMPTY = inspect.Parameter.empty
_MARKS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def render() -> str:
    """Return the page."""
    names = sorted(triptych.__all__, key=str.lower)
    return page("Python API", INTRODUCTION, *(_entry(name, getattr(triptych, name)) for name in names))


def _entry(name: str, described: Any) -> str:
    return "\n\n".join([f"## {name}", *(part for part in _parts(name, described) if part)])


def _parts(name: str, described: Any) -> Iterator[str]:
    if inspect.isclass(described):
        yield from _class(name, described)
    elif callable(described):
        yield _code(_signature(name, described))
        yield _text(described)
    else:
        yield f"`{described!r}`"


def _class(name: str, owner: type) -> Iterator[str]:
    yield _text(owner)
    if issubclass(owner, enum.Enum):
        texts = member_texts(owner)
        yield table(["value", ""], [[f"`{name}.{member.name}`", texts.get(member.name, "")] for member in owner])
        return
    if issubclass(owner, Exception):
        yield f"An error: a kind of `{owner.__mro__[1].__name__}`."
    if issubclass(owner, BaseModel):
        yield fields_table(owner, "messages.md")
        return
    yield _code(_signature(name, owner))
    if texts := member_texts(owner):
        yield table(["field", ""], [[f"`{field}`", text] for field, text in texts.items()])
    for member, method in _methods(owner):
        yield f"### {name}.{member}"
        yield _code(_signature(member, method))
        yield _text(method)


def _methods(owner: type) -> Iterator[tuple[str, Any]]:
    """List the public methods and properties that a class defines itself, in the order of its source."""
    for name, member in vars(owner).items():
        method = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(method):
            yield name, method


def _code(signature: str) -> str:
    return f"```py\n{signature}\n```" if signature else ""


def _signature(name: str, described: Any) -> str:
    """Return a signature as its source has it; nothing for an error that takes what every exception takes."""
    if inspect.isclass(described) and described.__init__ in (Exception.__init__, object.__init__):
        return ""
    signature = inspect.signature(described)
    if inspect.isclass(described):
        return f"{name}{_in_brackets(list(signature.parameters.values()))}"
    keyword = "async def" if inspect.iscoroutinefunction(described) else "def"
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
    result = "" if signature.return_annotation is _EMPTY else f" -> {_annotation(signature.return_annotation)}"
    return f"{keyword} {name}{_in_brackets(parameters)}{result}"


def _in_brackets(parameters: list[inspect.Parameter]) -> str:
    texts: list[str] = []
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not any(text.startswith("*") for text in texts):
            texts.append("*")
        annotation = "" if parameter.annotation is _EMPTY else f": {_annotation(parameter.annotation)}"
        default = "" if parameter.default is _EMPTY else f" = {_default(parameter.default)}"
        texts.append(f"{_MARKS.get(parameter.kind, '')}{parameter.name}{annotation}{default}")
    line = f"({', '.join(texts)})"
    return line if len(line) <= 88 else "(\n    " + ",\n    ".join(texts) + ",\n)"  # noqa: PLR2004 - a line of code


def _annotation(annotation: Any) -> str:
    """Return a type without the modules of its parts."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)


def _default(value: Any) -> str:
    """Return a default as its source has it; `...` for one that is made for each call or is not a literal."""
    text = value.name if isinstance(value, enum.Enum) else repr(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{text}"
    return text if isinstance(value, str | int | float | bool | tuple | None) else "..."


def _text(described: Any) -> str:
    """Return a docstring as Markdown: each paragraph on a line, the entries of `Args:` and `Raises:` as a list."""
    lines: list[str] = []
    in_section = False
    for line in docstring(described).splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            in_section = True
            lines += [line, ""]
        elif in_section and (entry := re.fullmatch(r"    ([\w.*]+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif line and lines and lines[-1]:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
            in_section = in_section and bool(line)
    return "\n".join(lines)
