"""Cuts a document into chunks that a model can read, and a chunk into passages whose meaning is compared.

Pure: text in, text out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_MAX_CHARS = 2_000
OVERLAP_MAX_CHARS = 300
PASSAGE_MAX_CHARS = 800
PASSAGE_MIN_CHARS = 80
"""A shorter paragraph, such as a heading, is joined with the next."""
_RULES = 2
"""Part of every content hash: raise it when the rules here change, and everything is cut and embedded again."""

_PARAGRAPHS = re.compile(r"\n\s*\n")
_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f\uff61])\s*|\n")
"""Ends of sentences. Chinese and Japanese ones have no space behind them."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a search can find."""

    id: str
    title: str
    body: str
    category: str = ""
    path: str = ""
    """The file that says it, in its folder. Empty means that it is the id."""
    note: str = ""
    """What people should know of how it was read. It is not stored."""

    @property
    def content_hash(self) -> str:
        return _hash(self.title, self.category, self.body)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document, with the document's title."""

    tenant: str
    position: int
    title: str
    body: str

    @property
    def content_hash(self) -> str:
        return _hash(self.tenant, self.title, self.body)

    def passages(self) -> list[str]:
        """Return the texts to embed: the paragraphs, each with the title, which says what they are about."""
        return [f"{self.title}. {passage}" for passage in _packed(self.body, PASSAGE_MAX_CHARS, PASSAGE_MIN_CHARS)]


def chunks(tenant: str, document: Document) -> list[Chunk]:
    """Cut a document into chunks. Each begins with the end of the one before it."""
    made: list[Chunk] = []
    overlap = ""
    for body in _packed(document.body, CHUNK_MAX_CHARS - OVERLAP_MAX_CHARS, CHUNK_MAX_CHARS):
        made.append(Chunk(tenant, len(made), document.title, f"{overlap}\n\n{body}" if overlap else body))
        overlap = _end(body)
    return made


def _packed(text: str, most_chars: int, least_chars: int) -> Iterator[str]:
    """Yield paragraphs. Short ones are joined, and long ones are cut."""
    packed = ""
    for paragraph in _cut(text, most_chars):
        if packed and (len(packed) >= least_chars or len(packed) + len(paragraph) + 2 > most_chars):
            yield packed
            packed = ""
        packed = f"{packed}\n\n{paragraph}" if packed else paragraph
    if packed:
        yield packed


def _cut(text: str, most_chars: int) -> Iterator[str]:
    for paragraph in filter(None, map(str.strip, _PARAGRAPHS.split(text))):
        if len(paragraph) <= most_chars:
            yield paragraph
            continue
        line = ""
        for sentence in filter(None, _ENDS.split(paragraph)):
            for start in range(0, len(sentence), most_chars):
                piece = sentence[start : start + most_chars]
                if line and len(line) + len(piece) + 1 > most_chars:
                    yield line
                    line = ""
                line = f"{line} {piece}" if line else piece
        if line:
            yield line


def _end(body: str) -> str:
    """Return the last sentences of a chunk, as many as the overlap has room for."""
    tail = body[-OVERLAP_MAX_CHARS:]
    if len(tail) == len(body):
        return tail
    first = _ENDS.search(tail)
    return tail[first.end() :].strip() if first else tail.partition(" ")[2] or tail


def _hash(*texts: str) -> str:
    digest = hashlib.sha256(str(_RULES).encode())
    for text in texts:
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()[:32]
