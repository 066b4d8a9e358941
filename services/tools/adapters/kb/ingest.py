"""Ingests a folder: makes a collection of the knowledge base say what the files of the folder say.

`triptych kb ingest` and the tool's option `folders` both do it with this module, so both do the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from triptych.kernel.errors import TriptychError
from triptych.tools.adapters.kb.chunks import Document
from triptych.tools.adapters.kb.reading import Unreadable, files_of, left_out_of, read_folder
from triptych.tools.adapters.kb.store import KnowledgeBase, Report

_COLLECTION = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class FolderError(TriptychError):
    """A folder cannot be ingested."""

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder = folder
        super().__init__(f"{folder}: {problem}")


@dataclass(slots=True)
class FolderContent:
    """What the files of a folder say, and which of them cannot be read."""

    documents: list[Document] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    left_out: list[Unreadable] = field(default_factory=list)
    """Files of other types, and links that lead out of the folder."""


def is_collection(name: str) -> bool:
    """Tell whether a collection can have this name."""
    return _COLLECTION.fullmatch(name) is not None


def find_files(folder: Path, *, allow_empty: bool = False) -> list[Path]:
    """List the files of a folder that `read` reads.

    Raises:
        FolderError: the folder does not exist, or has no such file and `allow_empty` is false.
    """
    if not folder.is_dir():
        raise FolderError(folder, "the folder does not exist. Make it, or name another")
    found = files_of(folder)
    if not found and not allow_empty:
        raise FolderError(
            folder,
            "the folder has no Markdown, text or PDF file. Put one in it; or empty its collection with "
            "`triptych kb ingest FOLDER --collection NAME --allow-empty`",
        )
    return found


def read(folder: Path, progress: Callable[[int], None] = lambda _done: None) -> FolderContent:
    """Read every file of a folder. This blocks; `progress` is told of each file."""
    content = FolderContent(left_out=left_out_of(folder))
    for one in read_folder(folder):
        if isinstance(one, Unreadable):
            content.unreadable.append(one)
        else:
            content.documents.append(one)
        progress(1)
    return content


async def load(
    knowledge: KnowledgeBase,
    tenant: str,
    collection: str,
    content: FolderContent,
    progress: Callable[[int], None] = lambda _done: None,
) -> Report:
    """Make a collection say what was read. Only what changed is embedded; what the folder no longer has is removed.

    A file that cannot be read now keeps what it said before. A file that is empty now says nothing.

    Raises:
        ModelFailure: the provider of embeddings does not answer. What was loaded until then stays.
    """
    keep = [one.id for one in content.unreadable if not one.is_empty]
    report = await knowledge.load(tenant, collection, content.documents, keep=keep, progress=progress)
    content.unreadable += [Unreadable(name, reason) for name, reason in report.refused.items()]
    return report
