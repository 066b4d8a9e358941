"""Read the prose of a file: each paragraph, docstring, comment and message, with the line that it begins on.

Code is not prose. Fences are left out. Inline code and the values of f-strings become the word `CODE`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path

from markdown_it import MarkdownIt

CODE = "CODE"
"""Replaces a piece of code inside a sentence. It counts as one word."""

COMMENT_MARKS = {".sql": "--", ".toml": "#", ".yaml": "#", ".yml": "#"}
"""How a line of comment begins in files whose comments alone are prose."""

SUFFIXES = (".md", ".py", *COMMENT_MARKS)

SHORTEST_MESSAGE_WORDS = 3
"""A string literal with fewer words is a name, a key or a format, and not a message."""

_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_PRAGMA = re.compile(r"^(noqa(: [A-Z0-9, ]+)?|type: ignore(\[[\w, -]+\])?|fmt: \w+|pragma: [\w ]+)(\s*- )?")
_PLACEHOLDER = re.compile(r"\{[\w.!]*\}")
_OWNERS_OF_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Kind(StrEnum):
    """The place where a text was found."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    DOCSTRING = "docstring"
    FUNCTION_DOCSTRING = "docstring of a function"
    COMMENT = "comment"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class Text:
    """One piece of prose. A line break in `text` is a line break in the file."""

    line: int
    kind: Kind
    text: str


def read(path: Path) -> list[Text]:
    """Read the prose of a file with one of the suffixes in `SUFFIXES`, in the order of its lines."""
    source = path.read_text("utf-8")
    match path.suffix:
        case ".md":
            texts = of_markdown(source)
        case ".py":
            texts = of_python(source)
        case suffix:
            texts = of_comment_lines(source, COMMENT_MARKS[suffix])
    return sorted(texts, key=lambda text: text.line)


def of_markdown(source: str) -> Iterator[Text]:
    """Read headings, paragraphs, list items and the cells of tables."""
    kind, row = Kind.PARAGRAPH, 0
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        if token.type == "heading_open":
            kind = Kind.HEADING
        elif token.type == "heading_close":
            kind = Kind.PARAGRAPH
        elif token.type == "tr_open" and token.map:
            row = token.map[0]
        elif token.type == "inline":
            line = token.map[0] if token.map else row
            yield Text(line + 1, kind, _without_code(_LINK.sub(r"\1", token.content)))


def of_comment_lines(source: str, mark: str) -> Iterator[Text]:
    """Read the comments that have lines of their own. Lines that follow each other are one text.

    The name of a statement, as in `-- name: take_jobs`, is code.
    """
    lines = enumerate(source.splitlines(), start=1)
    for is_comment, together in groupby(lines, lambda numbered: _is_comment(numbered[1].lstrip(), mark)):
        if is_comment:
            block = list(together)
            words = (line.strip().removeprefix(mark).strip() for _, line in block)
            yield Text(block[0][0], Kind.COMMENT, _without_code("\n".join(words)))


def _is_comment(line: str, mark: str) -> bool:
    return line.startswith(mark) and not line.startswith(f"{mark} name:")


def of_python(source: str) -> Iterator[Text]:
    """Read docstrings, comments, and string literals that are long enough to be messages."""
    tree = ast.parse(source)
    docstrings = dict(_docstrings(tree))
    yield from _comments(source)
    for docstring, kind in docstrings.items():
        yield Text(docstring.lineno, kind, _without_code(_dedented(str(docstring.value))))
    inside_f_strings = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if node in docstrings or node in inside_f_strings:
            continue
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            text = _without_code(_literal(node))
            if len(text.split()) >= SHORTEST_MESSAGE_WORDS:
                yield Text(node.lineno, Kind.MESSAGE, text)


def _docstrings(tree: ast.AST) -> Iterator[tuple[ast.Constant, Kind]]:
    """Find each string that is a statement of its own: docstrings, and the texts below attributes."""
    for owner in ast.walk(tree):
        if not isinstance(owner, _OWNERS_OF_DOCSTRINGS):
            continue
        for index, statement in enumerate(owner.body):
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                continue
            if isinstance(statement.value.value, str):
                is_of_function = index == 0 and is_plain_function(owner)
                yield statement.value, Kind.FUNCTION_DOCSTRING if is_of_function else Kind.DOCSTRING


def is_plain_function(node: ast.AST) -> bool:
    """Return whether a node is a function whose docstring must be in the imperative.

    A property is a noun. The docstring of a tool's operation is read by models, who look for what the result is.
    """
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    return not re.search(r"property|\.operation\b|\.setter\b", decorators)


def _comments(source: str) -> Iterator[Text]:
    """Join comments of consecutive lines that begin in the same column."""
    begun: tuple[int, int, list[str]] | None = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        (line, column), words = token.start, _PRAGMA.sub("", token.string.lstrip("#! "))
        if begun and line == begun[0] + len(begun[2]) and column == begun[1]:
            begun[2].append(words)
            continue
        if begun:
            yield Text(begun[0], Kind.COMMENT, _without_code("\n".join(begun[2])))
        begun = (line, column, [words])
    if begun:
        yield Text(begun[0], Kind.COMMENT, _without_code("\n".join(begun[2])))


def _literal(node: ast.expr) -> str:
    """Return the text of a string literal, with `CODE` for each value that an f-string inserts."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else CODE


def _dedented(docstring: str) -> str:
    return "\n".join(line.strip() for line in docstring.splitlines())


def _without_code(text: str) -> str:
    """Replace code spans and placeholders by `CODE`, and keep the line breaks inside them."""
    text = _CODE_SPAN.sub(lambda span: CODE + "\n" * span[0].count("\n"), text)
    return _PLACEHOLDER.sub(CODE, text)
