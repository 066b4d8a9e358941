"""Reads a folder of Markdown, text and PDF files as documents. A file that cannot be read is told and stops nothing.

A file is a stranger's work: it may be broken, or made to be slow or huge. So a child process reads it, within a time
and a size of memory, and is killed when it needs more. This module never raises for what is in a file.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
import unicodedata
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool
from pypdf import PdfReader

from triptych.tools.kb.chunks import Document

SUFFIXES = {".md", ".markdown", ".txt", ".pdf"}
FILE_MAX_BYTES = 50_000_000
PAGES_MAX = 5_000
TEXT_MAX_CHARS = 20_000_000
TITLE_MAX_CHARS = 300
NAME_MAX_BYTES = 1_000
"""The path of a file in its folder is the id of its document, and Postgres indexes it."""
READ_MAX_S = 30.0
READ_MAX_MEMORY_BYTES = 2 * 1024**3
REASON_MAX_CHARS = 300

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_HEADING = re.compile(r"^# +([^\n]+)$", re.MULTILINE)
_TITLE = re.compile(r"^title:([^\n]*)$", re.MULTILINE)


class NotText(ValueError):
    """The file cannot become a document. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that could not be read, and why."""

    id: str
    reason: str


def files_of(folder: Path) -> list[Path]:
    """The files of a folder and its folders that are read. Hidden files are not, nor are links that lead elsewhere."""
    inside = folder.resolve()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.resolve().is_relative_to(inside)
    )


def read_folder(folder: Path, *, read_max_s: float = READ_MAX_S) -> Iterator[Document | Unreadable]:
    """Read every file as a document whose id is its path in the folder.

    Args:
        folder: Where the files are.
        read_max_s: Seconds after which the reading of one file is stopped, and the file is unreadable.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=1, initializer=_bound_memory, context=context) as pool:
        for path in files_of(folder):
            name = path.relative_to(folder).as_posix()
            try:
                _check_name(name)
                yield _read_apart(pool, path, name, read_max_s)
            except NotText as error:
                yield Unreadable(_printable(name), _printable(str(error))[:REASON_MAX_CHARS])


def _read_apart(pool: ProcessPool, path: Path, name: str, read_max_s: float) -> Document:
    """Read one file in the child.

    Raises:
        NotText: the file cannot become a document.
        BrokenExecutor: no child can be started. That says nothing about the file.
    """
    reading = pool.schedule(_read, args=(path, name), timeout=read_max_s)
    try:
        document: Document = reading.result()
    except (NotText, BrokenExecutor):
        raise
    except TimeoutError as error:
        raise NotText(f"reading it takes longer than {read_max_s:g} s; save it anew, or split it") from error
    except ProcessExpired as error:
        raise NotText(
            f"it ended the process that read it (code {error.exitcode}); save it anew, or split it"
        ) from error
    except Exception as error:
        raise NotText(f"{type(error).__name__}: {error}") from error
    return document


def _bound_memory() -> None:
    """In the child: a file that swells ends the child, and not the machine."""
    # It grumbles about what it meets on the way and names no file; what cannot be read is told as `Unreadable`.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = READ_MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(READ_MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _check_name(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise NotText("its name is not UTF-8; rename it") from None
    if size > NAME_MAX_BYTES:
        raise NotText(f"its path has {size:,} bytes, and at most {NAME_MAX_BYTES:,} are kept; rename it")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise NotText("its name has control characters; rename it")


def _read(path: Path, name: str) -> Document:
    if (size := path.stat().st_size) > FILE_MAX_BYTES:
        raise NotText(f"it has {size:,} bytes, and at most {FILE_MAX_BYTES:,} are read; split it")
    match path.suffix.lower():
        case ".pdf":
            title, body = _pdf(path)
        case ".txt":
            title, body = "", path.read_text("utf-8-sig")
        case _:
            title, body = _markdown(path.read_text("utf-8-sig"))
    body = _storable(body).replace("\r\n", "\n").strip()
    if not body:
        raise NotText("there is no text in it; scanned pages need OCR first")
    if len(body) > TEXT_MAX_CHARS:
        raise NotText(f"its text has {len(body):,} characters, and at most {TEXT_MAX_CHARS:,} are read; split it")
    title = " ".join(_storable(title).split()) or path.stem.replace("-", " ").replace("_", " ")
    return Document(name, title[:TITLE_MAX_CHARS], body)


def _storable(text: str) -> str:
    """The text without what UTF-8 or Postgres cannot hold: extracted text has NUL and lone surrogates now and then."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _printable(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[:NAME_MAX_BYTES]


def _markdown(text: str) -> tuple[str, str]:
    """Title and body: the title of the front matter, else the first heading."""
    front = _FRONT.match(text)
    body = text[front.end() :] if front else text
    stated = _TITLE.search(front[1]) if front else None
    heading = _HEADING.search(body)
    if stated:
        return stated[1].strip().strip("\"'"), body
    return (heading[1].rstrip("# "), body[: heading.start()] + body[heading.end() :]) if heading else ("", body)


def _pdf(path: Path) -> tuple[str, str]:
    with PdfReader(path) as reader:
        if len(reader.pages) > PAGES_MAX:
            raise NotText(f"it has {len(reader.pages):,} pages, and at most {PAGES_MAX:,} are read; split it")
        pages = [page.extract_text() for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    return str(title or ""), "\n\n".join(pages)
