"""Check the subjects of commits: one message for git's hook `commit-msg`, or the commits of a range."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

LENGTH_MAX: Final = 72
NOT_IMPERATIVE: Final = re.compile(
    r"(An?|The|This|It|We|I|\w+ing|\w+[^e]ed"
    r"|Adds|Changes|Drops|Fixes|Implements|Introduces|Makes|Moves|Removes|Renames|Replaces|Sets|Updates|Uses)"
)
VERBS: Final = frozenset({"Bring", "Embed", "Ping", "Shed"})
MADE_BY_GIT: Final = ("Merge ", 'Revert "', 'Reapply "')
TO_BE_SQUASHED: Final = ("fixup! ", "squash! ", "amend! ")
SCISSORS: Final = " >8 "


def subject_mistakes(subject: str) -> list[str]:
    """Return what is wrong with a subject, a sentence for each mistake."""
    if subject.startswith(MADE_BY_GIT):
        return []
    found = []
    if len(subject) > LENGTH_MAX:
        found.append(f"It has {len(subject)} characters. Use {LENGTH_MAX} at most.")
    if not subject[:1].isupper():
        found.append("Begin with a verb that has a capital letter, such as 'Add'.")
    first = re.match(r"\w*", subject).group()  # type: ignore[union-attr]
    if NOT_IMPERATIVE.fullmatch(first) and first not in VERBS:
        found.append(f"'{first}' is not a verb in the imperative. Write 'Add', not 'Added' and not 'The addition of'.")
    if subject.endswith("."):
        found.append("Drop the full stop at its end.")
    return found


def message_mistakes(message: str) -> list[str]:
    """Return what is wrong with a message as git's hook gets it, before git has removed the comments."""
    text = message.split(SCISSORS, 1)[0]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    while lines and not lines[0].strip():
        del lines[0]
    if not lines or lines[0].startswith(TO_BE_SQUASHED):
        return []  # git refuses an empty message itself
    found = subject_mistakes(lines[0].rstrip())
    if len(lines) > 1 and lines[1].strip():
        found.append("Leave a line empty between subject and body.")
    return found


def subjects_of(commits: str) -> list[tuple[str, str]]:
    """Return the abbreviated hash and the subject of each commit of a range."""
    command = ["git", "log", "--no-merges", "--format=%h %s", commits, "--"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [(commit, subject) for commit, _, subject in (line.partition(" ") for line in output.splitlines())]


def main() -> int:
    """Print each mistake and return 1, or return 0 without a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("message", nargs="?", type=Path, help="the file with the message of one commit")
    what.add_argument("--range", help="the commits to check, such as origin/main..HEAD")
    options = parser.parse_args()
    if options.range:
        mistakes = [
            f"{commit} {subject!r}: {mistake}"
            for commit, subject in subjects_of(options.range)
            for mistake in subject_mistakes(subject)
        ]
    else:
        mistakes = [f"Commit subject: {mistake}" for mistake in message_mistakes(options.message.read_text("utf-8"))]
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    if mistakes:
        print("CONTRIBUTING.md says how to write the message of a commit.", file=sys.stderr)
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
