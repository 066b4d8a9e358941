"""The check of commit messages, as git's hook and as continuous integration call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from commit_subjects import LENGTH_MAX, message_mistakes, subject_mistakes

CHECK = Path(__file__).resolve().parents[2] / "checks/commit_subjects.py"


@pytest.mark.parametrize(
    "subject",
    [
        "Add a check of commit subjects",
        "Embed the schemas in the wheel",
        "Bring the ledger and the journal together",
        "Seed the dice of the simulation",
        "A" + "x" * (LENGTH_MAX - 1),
        "Merge branch 'main' into a-branch-with-a-name-that-is-far-longer-than-any-subject-may-be",
        'Revert "Added something, and said so badly."',
    ],
)
def test_a_good_subject_has_no_mistake(subject: str) -> None:
    assert subject_mistakes(subject) == []


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("A" + "x" * LENGTH_MAX, f"It has {LENGTH_MAX + 1} characters"),
        ("add a check", "capital letter"),
        ("executor: retry sooner", "capital letter"),
        ("", "capital letter"),
        ("Added a check", "'Added' is not a verb in the imperative"),
        ("Adding a check", "'Adding' is not a verb"),
        ("Fixes the check", "'Fixes' is not a verb"),
        ("The check of subjects", "'The' is not a verb"),
        ("Add a check.", "full stop"),
    ],
)
def test_each_mistake_of_a_subject_is_named(subject: str, told: str) -> None:
    (mistake,) = subject_mistakes(subject)
    assert told in mistake


def test_comments_of_git_and_the_diff_below_the_scissors_are_not_the_message() -> None:
    message = "# Please enter the message.\n\nAdd a check\n\nThe body.\n# ------ >8 ------\nadded by a diff.\n"
    assert message_mistakes(message) == []


def test_a_body_that_begins_in_the_second_line_is_a_mistake() -> None:
    assert message_mistakes("Add a check\nIt says why.\n") == ["Leave a line empty between subject and body."]


@pytest.mark.parametrize("message", ["fixup! added a check.\n", "squash! x\n", "# only comments\n", ""])
def test_what_git_will_squash_or_refuse_is_left_to_git(message: str) -> None:
    assert message_mistakes(message) == []


def test_the_hook_prints_the_mistake_and_fails(tmp_path: Path) -> None:
    message = tmp_path / "COMMIT_EDITMSG"
    message.write_text("Added a check\n", "utf-8")
    ended = subprocess.run([sys.executable, CHECK, message], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'Added' is not a verb" in ended.stderr
    assert "CONTRIBUTING.md" in ended.stderr


def test_a_range_is_checked_commit_by_commit_with_fixups_and_without_merges(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=Ana", "-c", "user.email=ana@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch=main", "--template=")
    for subject in ("before the range.", "Add a check", "fixup! Add a check"):
        git("commit", "--allow-empty", "--message", subject)
    git("switch", "--create", "side", "HEAD~1")
    git("commit", "--allow-empty", "--message", "Count the checks")
    git("merge", "--no-ff", "--message", "merged.", "main")
    checked = [sys.executable, CHECK, "--range"]
    ended = subprocess.run([*checked, "main~2..HEAD"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'fixup! Add a check'" in ended.stderr
    assert "merged" not in ended.stderr
    assert "before the range" not in ended.stderr
    good = subprocess.run([*checked, "main~2..main~1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
