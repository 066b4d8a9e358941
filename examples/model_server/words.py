"""Words, as the rules compare them: lower case, without the little ones, without their endings."""

from __future__ import annotations

import re
from typing import Any

WORD = re.compile(r"[a-z0-9][a-z0-9'+-]*", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s+")
LITTLE = """
    a about after all also am an and any are as at be because been before but by can could did do does doing
    done each for from get gets got had has have he hello hi how i if in into is it its just know let like me
    more most my need no not now of off on one only or our out over please she should so some still such than
    thank thanks that the their them then there these they this those to too up us very want was we were what
    when where which while who why will with would you your
"""
MEANINGLESS = frozenset(LITTLE.split())
ENDINGS = ("ations", "ation", "ings", "ing", "edly", "ies", "ers", "ed", "es", "er", "ly", "s", "e", "y")
SHORTEST_STEM = 3


def stem(word: str) -> str:
    """Remove the ending of a word, roughly: `invoices`, `invoicing` and `invoiced` are one."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return word.removesuffix(ending)
    return word


def words(text: str) -> list[str]:
    """List the words of a text that carry meaning, as stems, in order."""
    found = (match.group().lower() for match in WORD.finditer(text))
    return [stem(word) for word in found if word not in MEANINGLESS and len(word) > 1]


def sentences(text: str) -> list[str]:
    """List the sentences of a Markdown text, without headings. Items of lists count as sentences."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text):
        line = " ".join(paragraph.split())
        if not line.startswith("#"):
            parts += SENTENCE.split(re.sub(r"^(?:[-*]|\d+\.)\s+", "", line))
    return [part for part in parts if part]


def flatten(value: Any) -> str:
    """Collect all text inside a JSON value."""
    match value:
        case str():
            return value
        case dict():
            return "\n".join(flatten(item) for item in value.values())
        case list():
            return "\n".join(flatten(item) for item in value)
    return ""
