"""The check that a class name of the core has one meaning."""

from __future__ import annotations

from pathlib import Path

import homonyms

KERNEL, TOOLS = Path("triptych/kernel/line.py"), Path("services/tools/line.py")


def test_two_public_classes_of_one_name_in_two_modules_are_homonyms() -> None:
    places = [*homonyms.definitions(KERNEL, "class Line: ..."), *homonyms.definitions(TOOLS, "\nclass Line: ...")]
    assert [str(place) for place in homonyms.homonyms(places)["Line"]] == [f"{KERNEL}:1", f"{TOOLS}:2"]


def test_private_nested_and_overloaded_definitions_are_no_homonyms() -> None:
    module = """
class _Line: ...
class Outer:
    class Line: ...
@overload
def read(one: int) -> int: ...
@overload
def read(one: str) -> str: ...
def read(one): return one
"""
    assert [place.name for place in homonyms.definitions(KERNEL, module)] == ["Outer", "read"]


def test_a_folder_shows_only_homonyms_with_a_place_in_it() -> None:
    places = [*homonyms.definitions(KERNEL, "class Line: ..."), *homonyms.definitions(TOOLS, "class Line: ...")]
    assert homonyms.in_folders(places, [Path("triptych/kernel")])
    assert not homonyms.in_folders(places, [Path("triptych/ker"), Path("schemas")])
    assert homonyms.in_folders(places, [])
