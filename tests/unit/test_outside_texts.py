"""Texts of others that patterns of ours are held against: the time grows with the text, and not with its square."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from mcp import types

from triptych.kernel.kafka import cloudevents
from triptych.models import form
from triptych.playbook.expressions import ExpressionError, expressions
from triptych.tools.adapters.kb import chunks, reading
from triptych.tools.adapters.mcp import answers
from triptych.tools.adapters.mcp.contracts import mcp_operations
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.adapters.mcp.pins import PinnedTool

SOON_S = 1.0
TOOL = PinnedTool.model_validate({"name": "search", "inputSchema": {"type": "object"}})
OFFER = mcp_operations("crm", [TOOL], McpOptions.model_validate({"pins": "x.mcp.json", "command": ["crm"]}))[0][0]


def soon(do: Callable[[], object]) -> None:
    began = time.thread_time()
    do()
    assert time.thread_time() - began < SOON_S


@pytest.mark.parametrize(
    "said",
    [
        "a" * 1_700 + "z" + "a" * 250 + "y" * 49,
        (("a" * 199 + "b") * 7 + "zz" * 300)[-2_000:],
        "a" * 100_000 + "b",
        "ab" * 50_000 + "c" * 250,
    ],
)
def test_what_a_model_said_before_it_was_cut_off_is_looked_at_in_little_time(said: str) -> None:
    soon(lambda: form._cut_off(said, 100))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("so it is. " * 8, form.AnswerFault.LOOP),
        ("so it is. " * 7, form.AnswerFault.TRUNCATED),
        ("a beginning, then " + "over and over " * 40 + "and an end", form.AnswerFault.LOOP),
        ("over and over " * 40 + "x" * 150, form.AnswerFault.LOOP),
        ("over and over " * 40 + "".join(chr(97 + n % 26) + str(n) for n in range(150)), form.AnswerFault.TRUNCATED),
        ("", form.AnswerFault.TRUNCATED),
        ("abc", form.AnswerFault.TRUNCATED),
    ],
)
def test_a_model_that_says_the_same_over_and_over_is_told_from_one_that_does_not(
    said: str, fault: form.AnswerFault
) -> None:
    assert form._cut_off(said, 100).fault is fault


@pytest.mark.parametrize("said", ["fail" * 500_000, "connection " * 200_000, "invalid api " * 200_000, " " * 2_000_000])
def test_what_an_mcp_server_says_went_wrong_is_understood_in_little_time(said: str) -> None:
    result = types.CallToolResult(content=[types.TextContent(type="text", text=said)], isError=True)
    soon(lambda: answers.failure_of_result(result, OFFER))


EMPTY = chunks.Document("a.md", "", "")


@pytest.mark.parametrize(
    "text",
    [
        "# " + " " * 1_000_000 + "y",
        "# " + (" " * 1_000 + "x") * 1_000,
        "# " + "#" * 500_000 + "y",
        "---\ntitle: " + " " * 1_000_000 + "y\nx: 1\n---\nbody",
        "---\ntitle: " + " " * 9_000 + "y\nx: 1\n---\nbody",
        "---\n" + "x: 1\n" * 1_900 + "---\nbody",
        "---\n" * 200_000,
    ],
)
def test_a_document_has_its_title_in_little_time(text: str) -> None:
    def read() -> None:
        with suppress(reading.NotText):
            reading._markdown(EMPTY, text)

    soon(read)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# A title\nbody", "A title"),
        ("# A title ##\nbody", "A title"),
        ("#  A title  \nbody", "A title"),
        ("---\ntitle: 'A title' \n---\nbody", "A title"),
        ('---\ntitle: "A title"\n---\nbody', "A title"),
        ("body", ""),
    ],
)
def test_the_title_of_a_document_is_as_it_is_written(text: str, title: str) -> None:
    assert reading._markdown(EMPTY, text).title.strip() == title


@pytest.mark.parametrize(
    "text", ["\n" + " " * 1_000_000 + "x", ("\n" + " " * 1_000) * 500 + "x", ". " * 200_000, "\n " * 300_000]
)
def test_a_document_is_cut_in_little_time(text: str) -> None:
    soon(lambda: chunks._PARAGRAPHS.split(text))
    soon(lambda: chunks._ENDS.split(text))


@pytest.mark.parametrize("text", [b"\\" * 1_000_000 + b"\\u0000", b"\\\\u0000" * 100_000, b"\\u0000" * 100_000])
def test_nul_characters_are_found_in_little_time(text: bytes) -> None:
    soon(lambda: cloudevents._NUL.sub(rb"\1\\ufffd", text))


@pytest.mark.parametrize(
    "text", ["${{" * 300_000, "${{ '" * 200_000, '${{ r"""' + "x" * 900_000, "${{" + "{" * 900_000]
)
def test_where_a_template_ends_is_found_in_little_time(text: str) -> None:
    def look() -> None:
        with pytest.raises(ExpressionError):
            expressions(text)

    soon(look)
