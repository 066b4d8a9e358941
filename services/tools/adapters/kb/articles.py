"""The articles that ship with this package: the help pages of an invented product, for the demo and the tests."""

from __future__ import annotations

from importlib.resources import files

from triptych.kernel.errors import ConfigurationError
from triptych.tools.adapters.kb.chunks import Document


def parse_article(name: str, text: str) -> Document:
    """Markdown with `name: value` lines between two `---` in front.

    Raises:
        ConfigurationError: a field is missing.
    """
    try:
        _, front, body = text.split("---\n", 2)
        fields = dict(line.split(": ", 1) for line in front.strip().splitlines())
        return Document(fields["id"], fields["title"].strip("\"'"), body.strip(), fields["category"])
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"knowledge/{name}: {error!r}; front matter needs id, title and category") from error


def shipped_articles() -> list[Document]:
    """The knowledge base that ships with this package."""
    directory = files("triptych.examples").joinpath("demo", "articles")
    return [
        parse_article(file.name, file.read_text("utf-8"))
        for file in sorted(directory.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".md")
    ]
