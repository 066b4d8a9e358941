"""Check that a public class name of the core has one meaning: no two modules define a class of one name.

`python checks/homonyms.py` checks the whole core. With folders, it prints only homonyms that have a place in one of
them. `--functions` also lists functions of one name in many modules, for information: these do not fail the check.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

CORE: Final = ("triptych", "services", "schemas", "examples")
FUNCTION_MODULES_MIN: Final = 4
CURE: Final = "rename one of them by what makes it different, such as SmtpAccount beside LedgerAccount"


class Place(NamedTuple):
    """Where a public class or function is defined."""

    path: Path
    line: int
    name: str
    is_class: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def definitions(path: Path, source: str) -> Iterator[Place]:
    """Find the public classes and functions that a module defines at its top level, each name once."""
    seen = set()
    for node in ast.parse(source, str(path)).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if node.name not in seen:  # an overloaded function has several definitions
            seen.add(node.name)
            yield Place(path, node.lineno, node.name, isinstance(node, ast.ClassDef))


def homonyms(places: Iterable[Place], modules_min: int = 2) -> dict[str, list[Place]]:
    """Group places by name, and return the names that have at least `modules_min` places."""
    found: defaultdict[str, list[Place]] = defaultdict(list)
    for place in places:
        found[place.name].append(place)
    return {name: found[name] for name in sorted(found) if len(found[name]) >= modules_min}


def in_folders(places: Sequence[Place], folders: Sequence[Path]) -> bool:
    """Return whether one of the places is in one of the folders, or whether there are no folders."""
    return not folders or any(place.path.is_relative_to(folder) for place in places for folder in folders)


def main() -> int:
    """Print each homonym with all its places and the cure, and return 1 if there is one."""
    parser = argparse.ArgumentParser(prog="homonyms", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="print homonyms with a place in these folders alone")
    parser.add_argument("--functions", action="store_true", help="also list functions that many modules define")
    arguments = parser.parse_args()
    places = list(_core())
    classes = homonyms(place for place in places if place.is_class)
    shown = {name: found for name, found in classes.items() if in_folders(found, arguments.folders)}
    for name, found in shown.items():
        first, *others = map(str, found)
        print(f"{first}: class {name}: also in {', '.join(others)}: {CURE}")
    if arguments.functions:
        functions = homonyms((place for place in places if not place.is_class), FUNCTION_MODULES_MIN)
        for name, found in functions.items():
            print(f"function {name} in {len(found)} modules: {', '.join(map(str, found))}")
    return 1 if shown else 0


def _core() -> Iterator[Place]:
    listed = subprocess.run(["git", "ls-files", "--", *CORE], capture_output=True, text=True, check=True).stdout
    for path in map(Path, listed.splitlines()):
        if path.suffix == ".py" and path.is_file():
            yield from definitions(path, path.read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
