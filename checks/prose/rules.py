"""Find what is wrong with a text. A rule is a function that yields findings, and `RULES` names them all."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prose.texts import Kind, Text

LONGEST_SENTENCE_WORDS = 30
"""Nine of ten sentences of the documentation, and 99 of 100 in the code, have at most this many words."""

_SENTENCE_END = re.compile(r"[.!?][\"')*_]*(?=\s+[\"'(*_]*([A-Z0-9]|\w+\.\w))|[.!?:]?\n[ \t]*\n|[:;]\s*\n\s*[-*|]|\|")
_WORD = re.compile(r"[\w'-]*\w")
_SQL = re.compile(r"^\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|GRANT|REVOKE|select|insert into)\b")


@dataclass(frozen=True, slots=True)
class Idiom:
    """A phrase to avoid, and what to write in its place."""

    pattern: re.Pattern[str]
    cure: str
    bad: str
    good: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One phrase that breaks a rule, with the line that it is on and its cure."""

    line: int
    phrase: str
    cure: str


_TABLES = tomllib.loads(Path(__file__).with_name("phrases.toml").read_text("utf-8"))
IDIOMS = tuple(
    Idiom(re.compile(row["pattern"], re.IGNORECASE), row["cure"], row["bad"], row["good"]) for row in _TABLES["idiom"]
)
NOT_A_VERB = frozenset(_TABLES["not_a_verb"].split())
"""Words that begin a noun phrase or a clause. A docstring that begins with one does not say what the function does."""


def find_idioms(text: Text) -> Iterator[Finding]:
    """Find each phrase of the table of idioms, also across a line break."""
    flat = re.sub(r"\s", " ", text.text)
    for idiom in IDIOMS:
        for match in idiom.pattern.finditer(flat):
            yield Finding(_line_at(text, match.start()), match[0], idiom.cure)


def find_long_sentences(text: Text) -> Iterator[Finding]:
    """Find sentences of more than `LONGEST_SENTENCE_WORDS` words. SQL is not a sentence."""
    if _SQL.match(text.text):
        return
    for start, sentence in _sentences(text.text):
        words = _WORD.findall(sentence)
        if len(words) > LONGEST_SENTENCE_WORDS:
            beginning = " ".join(words[:5])
            cure = f"split this sentence of {len(words)} words; the limit is {LONGEST_SENTENCE_WORDS}"
            yield Finding(_line_at(text, start), f"{beginning} ...", cure)


def find_docstrings_without_a_verb(text: Text) -> Iterator[Finding]:
    """Find docstrings of functions that begin with an article, a pronoun, a preposition or a question word."""
    if text.kind is not Kind.FUNCTION_DOCSTRING:
        return
    first = _WORD.search(text.text)
    if first and first.start() == 0 and first[0].lower() in NOT_A_VERB:
        beginning = " ".join(text.text.split()[:4])
        yield Finding(text.line, beginning, "begin with a verb in the imperative: `Return the page.`")


RULES: dict[str, Callable[[Text], Iterator[Finding]]] = {
    "idioms": find_idioms,
    "sentences": find_long_sentences,
    "imperative": find_docstrings_without_a_verb,
}


def find(text: Text) -> Iterator[Finding]:
    """Apply every rule to a text."""
    for rule in RULES.values():
        yield from rule(text)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Split a text into sentences, each with the position where it begins."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield _trimmed(text, start, end.end())
        start = end.end()
    yield _trimmed(text, start, len(text))


def _trimmed(text: str, start: int, end: int) -> tuple[int, str]:
    sentence = text[start:end]
    return start + len(sentence) - len(sentence.lstrip()), sentence


def _line_at(text: Text, position: int) -> int:
    return text.line + text.text.count("\n", 0, position)
