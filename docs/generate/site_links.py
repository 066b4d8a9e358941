"""Make the site self-contained: a link that leaves docs/ leads to a page with the file that it names.

On GitHub and in an editor such a link leads to the file itself. MkDocs knows only what is in docs/.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "source/"
"""The folder of the site with the files of the project."""

_LINK = re.compile(
    r"""
    (?P<code> ^(?P<fence>`{3,}) .*? ^(?P=fence)$ | (?P<ticks>`+) [^`].*? (?P=ticks) )
    | \]\( (?!https?:|mailto:|\#) (?P<target>[^)\s#]+) (?P<anchor>\#[^)\s]*)? \)
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
"""A link, or code: a link inside code is not one."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for each file that a page links to, and for each file that these pages link to."""
    pages = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while pages:
        uri, markdown = pages.pop()
        for path in _linked_files(uri, markdown):
            added = f"{SOURCE}{path}.md"
            if _is_page(path) or files.get_file_from_path(added) or not (ROOT / path).exists():
                continue  # MkDocs itself names a link to a page or a file that is missing
            content = _page_of(path)
            files.append(File.generated(config, added, content=content))
            pages.append((added, content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - MkDocs names them
    """Let each link lead to the page of the site that has the file."""
    return _LINK.sub(lambda link: link[0] if link["code"] else _relinked(page.file.src_uri, link), markdown)


def _linked_files(uri: str, markdown: str) -> Iterator[str]:
    yield from (_project_path(uri, link["target"]) for link in _LINK.finditer(markdown) if not link["code"])


def _project_path(uri: str, target: str) -> str:
    """Return the path below the root of the project that a link on a page names."""
    page = uri.removeprefix(SOURCE).removesuffix(".md") if uri.startswith(SOURCE) else f"docs/{uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _relinked(uri: str, link: re.Match[str]) -> str:
    path, anchor = _project_path(uri, link["target"]), link["anchor"] or ""
    target = path.removeprefix("docs/") if _is_page(path) else f"{SOURCE}{path}.md"
    return f"]({posixpath.relpath(target, posixpath.dirname(uri) or '.')}{anchor})"


def _is_page(path: str) -> bool:
    return path.startswith("docs/") and path.endswith(".md")


def _page_of(path: str) -> str:
    """Return the page for a file of the project, or for a folder. The search leaves it out."""
    file = ROOT / path
    front = "---\nsearch: {exclude: true}\n---\n"
    if file.is_dir():
        names = sorted(
            f"- `{child.name}{'/' * child.is_dir()}`" for child in file.iterdir() if child.name[0] not in "._"
        )
        return f"{front}# {path}/\n\n" + "\n".join(names) + "\n"
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        return front + text
    return f"{front}# {path}\n\n````{file.suffix.removeprefix('.')}\n{text}\n````\n"
