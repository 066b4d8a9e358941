"""The front door: `from triptych import ...` is the stable surface, so all of it is documented, typed and loaded late."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pydantic
import pytest

import triptych


def methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public method and function, with its name as a reader writes it."""
    for name in triptych.__all__:
        thing = getattr(triptych, name)
        if inspect.isfunction(thing):
            yield name, thing
        for own, member in vars(thing).items() if inspect.isclass(thing) else ():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not own.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{own}", function


METHODS = dict(methods())


def raised(function: Callable[..., Any]) -> set[str]:
    """The exceptions that a function raises by name itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    named = [call.func if isinstance(call, ast.Call) else call for call in calls]
    return {node.id for node in named if isinstance(node, ast.Name) and node.id[0].isupper()}


def test_every_name_is_there_and_the_list_is_sorted() -> None:
    assert triptych.__all__ == sorted(triptych.__all__)
    assert all(getattr(triptych, name) is not None for name in triptych.__all__)
    assert set(triptych.__all__) <= set(dir(triptych))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Cleint"):
        _ = triptych.Cleint


def test_a_service_that_imports_one_part_does_not_load_the_others() -> None:
    program = "import sys, triptych; print(*[name for name in sys.modules if name.startswith('triptych')])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == ["triptych"]


@pytest.mark.parametrize("name", triptych.__all__)
def test_every_name_says_what_it_is(name: str) -> None:
    thing = getattr(triptych, name)
    text = inspect.getdoc(thing) or ""
    inherited = next((inspect.getdoc(base) for base in thing.__mro__[1:]), None) if inspect.isclass(thing) else None
    assert text, name
    assert text != inherited, f"{name} has the docstring of the class that it is made from"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented_and_typed(name: str) -> None:
    function = METHODS[name]
    assert inspect.getdoc(function), name
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name not in {"self", "cls"}]
    untyped = [each.name for each in parameters if each.annotation is inspect.Parameter.empty]
    assert not untyped, f"{name}: {untyped}"
    assert "return" in function.__annotations__, name


@pytest.mark.parametrize("name", METHODS)
def test_every_error_that_a_method_raises_is_named_in_its_docstring(name: str) -> None:
    function = METHODS[name]
    missing = {error for error in raised(function) if error not in (inspect.getdoc(function) or "")}
    assert not missing, f"{name} raises {missing}"


@pytest.mark.parametrize("name", triptych.__all__)
def test_every_member_of_an_enum_and_every_field_of_a_model_is_explained(name: str) -> None:
    thing = getattr(triptych, name)
    source = inspect.getsource(thing) if inspect.isclass(thing) else ""
    if inspect.isclass(thing) and issubclass(thing, Enum):
        unexplained = [member.name for member in thing if member.name not in source]
    elif inspect.isclass(thing) and issubclass(thing, pydantic.BaseModel):
        documented = set(_explained(source)) | {name for name in thing.model_fields if f"`{name}`" in source}
        unexplained = [
            field for field, info in thing.model_fields.items() if not info.description and field not in documented
        ]
    else:
        unexplained = []
    assert not unexplained, f"{name}: {unexplained}"


def _explained(source: str) -> Iterator[str]:
    """The fields of a class body that a string follows."""
    (made,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(made, ast.ClassDef)
    for field, text in zip(made.body, made.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id
