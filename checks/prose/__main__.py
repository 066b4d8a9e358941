"""Print each finding as `file:line: phrase: cure`, and end with code 1 if there are findings.

`python -m prose` reads every file of the project that has prose; `python -m prose PATH...` reads these files and
folders. `--count` prints how many findings each folder has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prose.rules import find
from prose.texts import SUFFIXES, read

LEFT_OUT = (
    "CHANGELOG.md",  # history keeps the words of its time
    "examples/",  # their texts stand for those of others
    "tests/",  # they quote what they hold
    "services/executor/migrations/",  # a database that has run one keeps it as it was
    "services/planner/migrations/",
    "services/tools/migrations/",
    "triptych/kernel/migrations/",
)
"""Files and folders that are read only when they are named."""


def main() -> int:
    """Read the arguments, print the findings, and return the exit code."""
    parser = argparse.ArgumentParser(prog="prose", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders to read; all of the project by default")
    parser.add_argument("--count", action="store_true", help="print how many findings each folder has")
    arguments = parser.parse_args()
    found = list(_findings(_files(arguments.paths)))
    if arguments.count:
        for folder, count in sorted(Counter(Path(line.split(":")[0]).parent.as_posix() for line in found).items()):
            print(f"{count:6} {folder}")
    else:
        print("\n".join(found)) if found else None
    return 1 if found else 0


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """List the files under version control that have prose, or those of `paths` alone."""
    asked = [str(path) for path in paths]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *asked],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        path = Path(name)
        if path.suffix in SUFFIXES and path.is_file() and (asked or not name.startswith(LEFT_OUT)):
            yield path


def _findings(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        lines = [(finding.line, finding) for text in read(path) for finding in find(text)]
        for line, finding in sorted(lines, key=lambda pair: pair[0]):
            yield f"{path}:{line}: {finding.phrase}: {finding.cure}"


if __name__ == "__main__":
    sys.exit(main())
