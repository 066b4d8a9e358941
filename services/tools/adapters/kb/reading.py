"""Read a folder of Markdown, text and PDF files as documents. A file that cannot be read is reported and stops nothing.

A file comes from a stranger: it can be broken, slow to read, or huge. So a child process reads it, with a limit of time
and of memory, and ends when it needs more. This module never raises for the content of a file.
"""

from __future__ import annotations

import codecs
import logging
import multiprocessing
import os
import re
import resource
import unicodedata
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import yaml
from frontmatter.default_handlers import YAMLHandler
from pebble import ProcessExpired, ProcessPool

from triptych.kernel.process.extras import MissingExtraError, require_extra
from triptych.tools.adapters.kb.chunks import Document

SUFFIXES = {".md", ".markdown", ".txt", ".pdf"}
FILE_MAX_BYTES = 50_000_000
PAGES_MAX = 5_000
TEXT_MAX_CHARS = 20_000_000
TITLE_MAX_CHARS = 300
ID_MAX_BYTES = 1_000
"""The id of a document is one that the file states, or the path of the file. Postgres indexes it."""
FRONT_MATTER_MAX_CHARS = 10_000
_FIELDS = ("id", "title", "category")
"""Of the front matter; all others are passed over."""
READ_MAX_S = 30.0
READ_MAX_MEMORY_BYTES = 2 * 1024**3
REASON_MAX_CHARS = 300
_NEEDED_TOO_MUCH = 75
"""The exit code of a child that came near its limit of memory."""
_NEAR = 0.75

_GLYPHS = re.compile(
    r"(?:/[A-Za-z]{1,8}[0-9]{1,5}){3,}|[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff]+"
)
_GARBLED_SHARE = 0.3
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_FRONT_MATTER = YAMLHandler()
_HEADING = re.compile(r"^# +([^\n]+)$", re.MULTILINE)


class NotText(ValueError):
    """The file cannot become a document. The message says why, and what to do."""


class NoText(NotText):
    """The file was read, and has no text."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that did not become a document, and why."""

    id: str
    reason: str
    is_empty: bool = False
    """It was read to its end and has no text. Otherwise the collection keeps its old text."""


def files_of(folder: Path) -> list[Path]:
    """List the files of a folder and its folders that are read: not hidden ones, and no links that lead elsewhere."""
    return [path for path, why_not in _listed(folder) if not why_not]


def left_out_of(folder: Path) -> list[Unreadable]:
    """List the files of a folder that are not read, each with the reason. Hidden files are not named."""
    return [
        Unreadable(_printable(path.relative_to(folder).as_posix()), why_not)
        for path, why_not in _listed(folder)
        if why_not
    ]


def _listed(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a folder in order, each with the reason why it is not read, or with none."""
    inside = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if _leads_out(path, inside):
            if path.is_file() or path.is_symlink():
                yield path, "a link that leads out of the folder; copy the file into it"
        elif path.is_file():
            is_read = path.suffix.lower() in SUFFIXES
            yield path, "" if is_read else f"no file of {', '.join(sorted(SUFFIXES))}; save it as one of them"


def _leads_out(path: Path, inside: Path) -> bool:
    try:
        return not path.resolve(strict=True).is_relative_to(inside)
    except FileNotFoundError:  # a link to nothing
        return not path.resolve().is_relative_to(inside)
    except (OSError, RuntimeError):  # a link to itself
        return True


def read_folder(
    folder: Path, *, read_max_s: float = READ_MAX_S, memory_max_bytes: int = READ_MAX_MEMORY_BYTES
) -> Iterator[Document | Unreadable]:
    """Read every file as a document. Its id is the one that its front matter states, else its path in the folder.

    A file is unreadable if its reading takes longer than `read_max_s` seconds, or if the process that reads it needs
    more than `memory_max_bytes`.
    """
    by_id: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=1, initializer=_bound_memory, initargs=(memory_max_bytes,), context=context) as pool:
        for path in files_of(folder):
            name = path.relative_to(folder).as_posix()
            try:
                _check_id(name, "its path", "rename it")
                document = _read_apart(pool, path, name, read_max_s)
            except NotText as error:
                reason = _printable(str(error))[:REASON_MAX_CHARS]
                yield Unreadable(_printable(name), reason, is_empty=isinstance(error, NoText))
                continue
            if (first := by_id.setdefault(document.id, name)) == name:
                yield document
            else:
                yield Unreadable(name, f"its id {document.id} is that of {first} too; write another in one of them")


def _read_apart(pool: ProcessPool, path: Path, name: str, read_max_s: float) -> Document:
    """Read one file in the child.

    Raises:
        NotText: the file cannot become a document.
        BrokenExecutor: no child can be started. That says nothing about the file.
    """
    reading = pool.schedule(_read_within_memory, args=(path, name), timeout=read_max_s)
    try:
        document: Document = reading.result()
    except (NotText, BrokenExecutor):
        raise
    except TimeoutError as error:
        raise NotText(f"reading it takes longer than {read_max_s:g} s; save it again, or split it") from error
    except ProcessExpired as error:
        if error.exitcode == _NEEDED_TOO_MUCH:
            raise NotText(
                "reading it takes more memory than there is for a file; save it again, or split it"
            ) from error
        raise NotText(
            f"it ended the process that read it (code {error.exitcode}); save it again, or split it"
        ) from error
    except Exception as error:
        if type(error).__name__ == "FileNotDecryptedError" or "encryption" in str(error).lower():
            raise NotText(f"it is encrypted ({error}); save it without a password") from error
        raise NotText(f"{type(error).__name__}: {error}; save it again") from error
    return document


def _bound_memory(most_bytes: int) -> None:
    """Limit the memory of the child, so that a file that swells ends the child and not the machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _read_within_memory(path: Path, name: str) -> Document:
    """Read a file in the child. A reading that came near the limit of memory ends the child.

    The library goes on after a MemoryError as after any other, and gives what it has read until then.
    """
    try:
        return _read(path, name)
    except MemoryError:
        os._exit(_NEEDED_TOO_MUCH)
    finally:
        if _peak_bytes() > _NEAR * resource.getrlimit(resource.RLIMIT_AS)[0]:
            os._exit(_NEEDED_TOO_MUCH)


def _peak_bytes() -> int:
    """Return the most memory that this process has had."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = re.search(r"^VmPeak:\s+(\d+) kB$", status, re.MULTILINE)
    return int(peak[1]) * 1024 if peak else 0


def _check_id(text: str, what: str, cure: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise NotText(f"{what} is not UTF-8; {cure}") from None
    if size > ID_MAX_BYTES:
        raise NotText(f"{what} has {size:,} bytes, and at most {ID_MAX_BYTES:,} are kept; {cure}")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise NotText(f"{what} has control characters; {cure}")


def _read(path: Path, name: str) -> Document:
    if (size := path.stat().st_size) > FILE_MAX_BYTES:
        raise NotText(f"it has {size:,} bytes, and at most {FILE_MAX_BYTES:,} are read; split it")
    document = Document(name, "", "", path=name)
    match path.suffix.lower():
        case ".pdf":
            title, body, note = _pdf(path)
            document = replace(document, title=title, body=body, note=note)
        case ".txt":
            document = replace(document, body=_decoded(path.read_bytes()))
        case _:
            document = _markdown(document, _decoded(path.read_bytes()))
    body = _storable(document.body).replace("\r\n", "\n").strip()
    if not body:
        raise NoText("there is no text in it; scanned pages need OCR first")
    if len(body) > TEXT_MAX_CHARS:
        raise NotText(f"its text has {len(body):,} characters, and at most {TEXT_MAX_CHARS:,} are read; split it")
    title = " ".join(_storable(document.title).split()) or path.stem.replace("-", " ").replace("_", " ")
    return replace(document, title=title[:TITLE_MAX_CHARS], body=body)


def _decoded(raw: bytes) -> str:
    """Decode a file: as UTF-8, or as UTF-16 where the file says so."""
    try:
        text = raw.decode("utf-16" if raw.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"it is not UTF-8 (at byte {error.start:,}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _storable(text: str) -> str:
    """Remove what UTF-8 or Postgres cannot hold. Extracted text can have NUL and lone surrogates."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _printable(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[:ID_MAX_BYTES]


def _markdown(document: Document, text: str) -> Document:
    """Read id, title and category from the front matter. Without a title there, the first heading is the title.

    Raises:
        NotText: the front matter is not YAML, or a field in it is not one text.
    """
    fields, body = _front_matter(text)
    heading = None if fields["title"] else _HEADING.search(body)
    if heading:
        fields["title"] = heading[1].rstrip("# ")
        body = body[: heading.start()] + body[heading.end() :]
    if fields["id"]:
        _check_id(fields["id"], "the id in its front matter", "write a shorter one in plain text")
    category = _storable(fields["category"])[:TITLE_MAX_CHARS]
    return replace(document, id=fields["id"] or document.id, title=fields["title"], category=category, body=body)


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """Split a text in the fields of its front matter and what follows. A field that it does not state is empty.

    Text between two rules (`---`) that states no fields belongs to the document. `frontmatter.parse` would drop it.
    """
    fields = dict.fromkeys(_FIELDS, "")
    if not _FRONT_MATTER.detect(text):
        return fields, text
    try:
        front, body = _FRONT_MATTER.split(text)
    except ValueError:  # one rule alone
        return fields, text
    if len(front) > FRONT_MATTER_MAX_CHARS:
        raise NotText(
            f"its front matter has {len(front):,} characters, and at most {FRONT_MATTER_MAX_CHARS:,} are read"
        )
    try:
        # Of this loader every value is text: an id 007 stays 007, and 2026-11-30 is not a date.
        stated = _FRONT_MATTER.load(front, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise NotText(
            f"its front matter is not YAML: line {line} of the file ({error.problem}). "
            "Write each field as `name: value`, with the value in quotes where it has a colon"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise NotText(f"its front matter is not YAML ({error}); write each field as `name: value`") from None
    if stated is None:
        return fields, body
    if not isinstance(stated, dict):
        return fields, text
    for name in _FIELDS:
        if not isinstance(value := stated.get(name, ""), str):
            raise NotText(f"`{name}` in its front matter is not one text; write `{name}: value`")
        fields[name] = value.strip()
    return fields, body


def _pdf(path: Path) -> tuple[str, str, str]:
    """Read title and body, and say what is missing in the body."""
    try:
        require_extra("kb", "reading a PDF file")
    except MissingExtraError as error:
        raise NotText(str(error)) from None
    from pypdf import PdfReader  # noqa: PLC0415 - it is of the extra, and takes its time

    with _Skipped() as skipped, PdfReader(path) as reader:
        if len(reader.pages) > PAGES_MAX:
            raise NotText(f"it has {len(reader.pages):,} pages, and at most {PAGES_MAX:,} are read; split it")
        pages = [page.extract_text() for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    if skipped.said:
        raise NotText(f"parts of it cannot be read ({skipped.said}); save it again, or split it")
    body = "\n\n".join(pages)
    if _is_garbled(body):
        raise NotText("its fonts do not say which characters they show; print it to a new PDF, or use OCR")
    silent = sum(not page.strip() for page in pages)
    note = f"{silent:,} of {len(pages):,} pages have no text; scanned pages need OCR first" if silent else ""
    return str(title or ""), body, note


def _is_garbled(text: str) -> bool:
    """Tell whether much of a text is numbers of glyphs, as a font without character codes gives them."""
    odd = sum(len(found[0]) for found in _GLYPHS.finditer(text))
    return odd > _GARBLED_SHARE * len(text)


class _Skipped(logging.Handler):
    """Listens to the library, which omits what it cannot read and says so only in its log.

    What else it says there names no file and is dropped.
    """

    _LEFT_OUT = (
        "Error ",  # of zlib
        "Exceeded ",
        "Ignoring page tree entry",
        "Impossible to decode XFormObject",
        "Invalid stream (index",
        "Page contents are not",
        "Token exceeds",
    )

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = ""
        """The first thing that was left out, in the words of the library."""
        self._library = logging.getLogger("pypdf")

    def __enter__(self) -> Self:
        self._library.addHandler(self)
        self._library.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._library.propagate = True
        self._library.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one message."""
        if not self.said and (message := record.getMessage()).startswith(self._LEFT_OUT):
            self.said = message
