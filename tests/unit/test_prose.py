"""The check of the project's prose: what it reads, what it finds, and where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prose.rules import IDIOMS, LONGEST_SENTENCE_WORDS, Idiom, find, find_idioms
from prose.texts import Kind, Text, of_comment_lines, of_markdown, of_python

ROOT = Path(__file__).parents[2]

MODULE = '''\
"""Serve requests: one process.

It never blocks.
"""
# noqa: INP001 - a script
LIMIT = 5
"""How many requests it takes."""


class Server:
    """One server."""

    @property
    def address(self) -> str:
        """The address."""
        return f"http://{self.host} is the address"

    def stop(self) -> None:
        """Stop it."""
        # The socket first,
        # then the loop.
        raise RuntimeError("it could not " "be stopped")
'''

PAGE = """\
# A title

A paragraph with `code` and a [link](https://example.com),
on two lines.

```python
print("Whatever this is, it is code.")
```

- an item

| name | meaning |
|---|---|
| `x` | the first |
"""


def paragraph(text: str) -> Text:
    return Text(1, Kind.PARAGRAPH, text)


def sentence(words: int) -> str:
    return " ".join(["Word", *["word"] * (words - 1)]) + "."


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.cure)
def test_an_idiom_is_found_in_its_bad_example_and_not_in_its_good_one(idiom: Idiom) -> None:
    assert idiom.cure in {finding.cure for finding in find_idioms(paragraph(idiom.bad))}
    (good,) = of_markdown(idiom.good)
    assert list(find_idioms(good)) == []


def test_the_prose_of_a_module_is_its_docstrings_comments_and_messages() -> None:
    assert {(text.line, text.kind, text.text) for text in of_python(MODULE)} == {
        (1, Kind.DOCSTRING, "Serve requests: one process.\n\nIt never blocks."),
        (5, Kind.COMMENT, "a script"),
        (7, Kind.DOCSTRING, "How many requests it takes."),
        (11, Kind.DOCSTRING, "One server."),
        (15, Kind.DOCSTRING, "The address."),
        (16, Kind.MESSAGE, "http://CODE is the address"),
        (19, Kind.FUNCTION_DOCSTRING, "Stop it."),
        (20, Kind.COMMENT, "The socket first,\nthen the loop."),
        (22, Kind.MESSAGE, "it could not be stopped"),
    }


def test_the_prose_of_a_page_leaves_out_code_and_addresses() -> None:
    assert [(text.line, text.kind, text.text) for text in of_markdown(PAGE)] == [
        (1, Kind.HEADING, "A title"),
        (3, Kind.PARAGRAPH, "A paragraph with CODE and a link,\non two lines."),
        (10, Kind.PARAGRAPH, "an item"),
        (12, Kind.PARAGRAPH, "name"),
        (12, Kind.PARAGRAPH, "meaning"),
        (14, Kind.PARAGRAPH, "CODE"),
        (14, Kind.PARAGRAPH, "the first"),
    ]


def test_the_prose_of_other_files_is_their_comments_without_the_names_of_statements() -> None:
    source = "-- name: take\n-- One row,\n--   and no more.\nselect 1  -- code\n\n    -- Another.\n"
    assert list(of_comment_lines(source, "--")) == [
        Text(2, Kind.COMMENT, "One row,\nand no more."),
        Text(6, Kind.COMMENT, "Another."),
    ]


def test_an_idiom_across_a_line_break_is_found_on_the_line_where_it_begins() -> None:
    (finding,) = find(Text(10, Kind.COMMENT, "This line\nis\nno task."))
    assert (finding.line, finding.phrase) == (11, "is no")


def test_a_sentence_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert list(find(paragraph(f"{sentence(LONGEST_SENTENCE_WORDS)} {sentence(LONGEST_SENTENCE_WORDS)}"))) == []
    (finding,) = find(paragraph(f"Short.\n{sentence(LONGEST_SENTENCE_WORDS + 1)}"))
    assert (finding.line, finding.phrase) == (2, "Word word word word word ...")


def test_a_list_after_a_colon_an_item_and_a_blank_line_end_a_sentence() -> None:
    half = sentence(LONGEST_SENTENCE_WORDS - 1).removesuffix(".")
    assert list(find(Text(1, Kind.DOCSTRING, f"{half}:\n- {half};\n- {half}\n\n{half}"))) == []


def test_sql_is_not_a_sentence() -> None:
    assert list(find(Text(1, Kind.MESSAGE, "SELECT " + sentence(LONGEST_SENTENCE_WORDS)))) == []


@pytest.mark.parametrize("docstring", ["The page.", "Whether it is open.", "What follows.", "A page."])
def test_the_docstring_of_a_function_begins_with_a_verb(docstring: str) -> None:
    assert [finding.phrase for finding in find(Text(3, Kind.FUNCTION_DOCSTRING, docstring))] == [docstring]
    assert list(find(Text(3, Kind.DOCSTRING, docstring))) == []
    assert list(find(Text(3, Kind.FUNCTION_DOCSTRING, f"Return {docstring.lower()}"))) == []


def test_the_docstring_of_a_property_or_of_an_operation_may_be_a_noun() -> None:
    source = 'class A:\n    @cached_property\n    def a(self):\n        """The a."""\n'
    source += '@tool.operation()\ndef b():\n    """An order."""\n'
    assert [finding for text in of_python(source) for finding in find(text)] == []


def test_the_command_prints_file_line_phrase_and_cure(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Page\n\nWhoever reads this.\n")
    (tmp_path / "good.md").write_text("# Page\n\nThe reader.\n")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    found = subprocess.run(
        [sys.executable, "-m", "prose"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT / "checks"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout == "page.md:3: Whoever: name the part that acts: `the process that`, `the caller`\n"
