"""Reads a folder of Markdown, text and PDF files as documents. What cannot be read is told, and stops nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from triptych.tools.kb.chunks import Document

SUFFIXES = {".md", ".markdown", ".txt", ".pdf"}
FILE_MAX_BYTES = 50_000_000
PAGES_MAX = 5_000
TITLE_MAX_CHARS = 300

logging.getLogger("pypdf").setLevel(logging.CRITICAL)
"""What it grumbles about on the way names no file; what cannot be read is told as `Unreadable`."""

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_HEADING = re.compile(r"^# +(.+?) *#*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that could not be read, and why."""

    id: str
    reason: str


def files_of(folder: Path) -> list[Path]:
    """The files of a folder and its folders that are read; hidden ones are not."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_folder(folder: Path) -> Iterator[Document | Unreadable]:
    """Every file as a document whose id is its path in the folder."""
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        try:
            yield _read(path, name)
        except (OSError, UnicodeDecodeError, PyPdfError, ValueError) as error:
            yield Unreadable(name, f"{type(error).__name__}: {error}")


def _read(path: Path, name: str) -> Document:
    if path.stat().st_size > FILE_MAX_BYTES:
        raise ValueError(f"larger than {FILE_MAX_BYTES:,} bytes")
    match path.suffix.lower():
        case ".pdf":
            title, body = _pdf(path)
        case ".txt":
            title, body = "", path.read_text("utf-8-sig")
        case _:
            title, body = _markdown(path.read_text("utf-8-sig"))
    # Postgres stores no NUL, and extracted text has some now and then.
    body = body.replace("\0", "").replace("\r\n", "\n").strip()
    if not body:
        raise ValueError("there is no text in it; scanned pages need OCR first")
    title = " ".join(title.replace("\0", "").split()) or path.stem.replace("-", " ").replace("_", " ")
    return Document(name, title[:TITLE_MAX_CHARS], body)


def _markdown(text: str) -> tuple[str, str]:
    """Title and body: the title of the front matter, else the first heading."""
    front = _FRONT.match(text)
    body = text[front.end() :] if front else text
    stated = re.search(r"^title: *[\"']?(.+?)[\"']? *$", front[1], re.MULTILINE) if front else None
    heading = _HEADING.search(body)
    if stated:
        return stated[1], body
    return (heading[1], body[: heading.start()] + body[heading.end() :]) if heading else ("", body)


def _pdf(path: Path) -> tuple[str, str]:
    with PdfReader(path) as reader:
        if len(reader.pages) > PAGES_MAX:
            raise ValueError(f"more than {PAGES_MAX:,} pages")
        pages = [page.extract_text() for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    return str(title or ""), "\n\n".join(pages)
