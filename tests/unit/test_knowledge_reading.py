"""Files that become documents, and files that do not, each with its reason."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from pdfs import FONT, pdf, pdf_of, pdf_of_pages, pdf_that_doubles, stream
from triptych.tools.adapters.kb import reading
from triptych.tools.adapters.kb.chunks import Document
from triptych.tools.adapters.kb.reading import NoText, NotText, Unreadable, read_folder

ARTICLES = Path(__file__).parents[2] / "examples/demo/articles"


def form(more: bytes) -> bytes:
    kind = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F1 5 0 R>>>>"
    return stream(b"BT /F1 1 Tf (In a form) Tj ET", kind + more)


PAGE = stream(b"BT /F1 12 Tf (On the page) Tj ET /X Do")


def read(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return reading._read(folder / name, name).body


def test_the_text_of_a_page_and_of_its_forms_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a.pdf", pdf("Hello")) == "Hello"
    assert read(tmp_path, "a.pdf", pdf_of(PAGE, [form(b"")])).split("\n") == ["On the page", "In a form"]


@pytest.mark.parametrize("more", [b"/Filter/Nothing", b"/Filter/FlateDecode", b"/Filter/JBIG2Decode"])
def test_a_pdf_of_which_the_library_leaves_out_a_part_is_told(
    tmp_path: Path, more: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotText, match="parts of it cannot be read"):
        read(tmp_path, "a.pdf", pdf_of(PAGE, [form(more)]))
    assert not caplog.records, "the library names no file in its log"
    assert logging.getLogger("pypdf").propagate


@pytest.mark.parametrize("name", [b"/G%02d", b"/a%d"])
def test_a_pdf_whose_fonts_say_nothing_of_their_characters_is_told(tmp_path: Path, name: bytes) -> None:
    names = b"".join(b" %d%b" % (ord(letter), name % number) for number, letter in enumerate("Helo thr."))
    font = FONT.replace(b"Helvetica", b"ABCDEF+Own") % (b"/Encoding<</Type/Encoding/Differences[%b]>>" % names)
    page = stream(b"BT /F1 12 Tf (Hello there. The rotor hoter.) Tj ET")
    with pytest.raises(NotText, match="which characters they show"):
        read(tmp_path, "a.pdf", pdf_of(page, [], font=font))


def test_a_pdf_without_the_extra_is_told_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(NotText, match=r"pip install 'triptych\[kb\]'"):
        read(tmp_path, "a.pdf", pdf("Hello"))
    assert read(tmp_path, "a.md", b"Hello") == "Hello"


def test_pages_without_text_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_of_pages(["One", "", "Three", ""]))
    document = reading._read(tmp_path / "a.pdf", "a.pdf")
    assert document.body.split() == ["One", "Three"]
    assert document.note == "2 of 4 pages have no text; scanned pages need OCR first"
    (tmp_path / "b.pdf").write_bytes(pdf("Whole"))
    assert reading._read(tmp_path / "b.pdf", "b.pdf").note == ""


def test_a_pdf_with_some_odd_characters_is_read(tmp_path: Path) -> None:
    path = "See /usr/local/lib/python3/site/a1/b2/c3 \\225 for more of it"
    assert "/a1/b2/c3" in read(tmp_path, "a.pdf", pdf(path))


def test_a_pdf_with_more_forms_than_the_library_looks_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotText, match="Exceeded 5000 form"):
        read(tmp_path, "a.pdf", pdf_that_doubles(40))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_each_encoding_that_says_its_name_is_read(tmp_path: Path, encoding: str) -> None:
    text = "---\r\ntitle: Größe\r\n---\r\nPreis: 3 €\r\n\r\nEnde"
    (tmp_path / "a.md").write_bytes(text.encode(encoding))
    document = reading._read(tmp_path / "a.md", "a.md")
    assert (document.title, document.body) == ("Größe", "Preis: 3 €\n\nEnde")
    with pytest.raises(NotText, match=r"at byte 2.*save it as UTF-8"):
        read(tmp_path, "a.txt", "Grüße".encode("latin-1"))


def markdown(folder: Path, text: str) -> Document:
    (folder / "the-file.md").write_text(text, "utf-8")
    return reading._read(folder / "the-file.md", "the-file.md")


@pytest.mark.parametrize(
    ("text", "id_title_category", "body"),
    [
        ("---\nid: 007\ntitle: 'A: b'\ncategory: tax\nby: [us]\n---\nText.", ("007", "A: b", "tax"), "Text."),
        ("---\ntitle: 2026-11-30\n---\n# Heading\n\nText.", ("the-file.md", "2026-11-30", ""), "# Heading\n\nText."),
        ("---\nid: a\n---  \n# Heading #\nText.", ("a", "Heading", ""), "Text."),
        ("---\n---\nText.", ("the-file.md", "the file", ""), "Text."),
        ("Text.\n---\nid: a\n---\n", ("the-file.md", "the file", ""), "Text.\n---\nid: a\n---"),
        ("---\nBetween rules.\n---\nText.", ("the-file.md", "the file", ""), "---\nBetween rules.\n---\nText."),
        ("---\nBelow one rule.", ("the-file.md", "the file", ""), "---\nBelow one rule."),
        ("---\nid: a\n---\nText.\n\n---\nMore.", ("a", "the file", ""), "Text.\n\n---\nMore."),
    ],
)
def test_front_matter_states_id_title_and_category(
    tmp_path: Path, text: str, id_title_category: tuple[str, str, str], body: str
) -> None:
    document = markdown(tmp_path, text)
    assert (document.id, document.title, document.category) == id_title_category
    assert (document.path, document.body) == ("the-file.md", body)


@pytest.mark.parametrize(
    ("front", "problem"),
    [
        ("owner: me\ntitle: Rule 1: eat", r"line 3 of the file .*mapping values.*in quotes"),
        ("title: [a, b]", "`title` in its front matter is not one text; write `title: value`"),
        ("id: {a: b}", "`id` in its front matter is not one text"),
        ("id: 'a\tb'", "the id in its front matter has control characters"),
        (f"id: {'a' * 1_001}", "the id in its front matter has 1,001 bytes"),
        ('id: "\\uD835"', "the id in its front matter is not UTF-8"),
        ("title: *nowhere", "undefined alias"),
        ("[" * 9_000, "its front matter is not YAML"),
        (f"note: {'a' * 60_000}", "at most 10,000 are read"),
    ],
)
def test_bad_front_matter_is_told_with_the_place_and_the_cure(tmp_path: Path, front: str, problem: str) -> None:
    with pytest.raises(NotText, match=problem):
        markdown(tmp_path, f"---\n{front}\n---\nText.")


def test_a_file_with_bad_front_matter_or_an_id_twice_stops_no_other(tmp_path: Path) -> None:
    for name, front in {"a": "id: one", "b": "id: one", "c": "id: [", "d": "id: two"}.items():
        (tmp_path / f"{name}.md").write_text(f"---\n{front}\n---\nText.")
    a, b, c, d = read_folder(tmp_path)
    assert (a.id, d.id) == ("one", "two")
    assert b == Unreadable("b.md", "its id one is that of a.md too; write another in one of them")
    assert isinstance(c, Unreadable)
    assert c.id == "c.md"


def test_all_articles_of_the_demo_are_read() -> None:
    read = [reading._read(path, path.name) for path in reading.files_of(ARTICLES)]
    assert len(read) >= 60
    assert len({document.id for document in read}) == len(read)
    assert all(document.id.startswith("kb-") and document.category for document in read)


@pytest.mark.parametrize(("name", "content"), [("a.md", b" \n"), ("a.txt", b"\xef\xbb\xbf"), ("a.pdf", pdf(""))])
def test_a_file_without_text_is_known_to_be_empty(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(NoText):
        read(tmp_path, name, content)


def test_what_is_not_looked_into_is_named_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "handbook"
    (folder / "within").mkdir(parents=True)
    (tmp_path / "secret.md").write_text("Not in the folder.")
    for name in ("a.md", "within/b.docx", "c.HTML", ".hidden.docx", "within/d.TXT", "e"):
        (folder / name).write_text("Text.")
    for name, target in {"f.md": tmp_path / "secret.md", "g": tmp_path, "h.md": folder / "a.md"}.items():
        (folder / name).symlink_to(target)
    (folder / "i.md").symlink_to(folder / "i.md")
    assert [path.relative_to(folder).as_posix() for path in reading.files_of(folder)] == [
        "a.md",
        "h.md",
        "within/d.TXT",
    ]
    told = {one.id: one.reason for one in reading.left_out_of(folder)}
    assert set(told) == {"c.HTML", "e", "f.md", "g", "i.md", "within/b.docx"}
    assert ".md" in told["within/b.docx"]
    assert {told[name] for name in ("f.md", "g", "i.md")} == {
        "a link that leads out of the folder; copy the file into it"
    }


@pytest.mark.parametrize("peak_bytes", [0, 7 * 1024**3])
def test_a_reading_that_ran_out_of_memory_ends_the_process_whatever_the_library_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak_bytes: int
) -> None:
    class Ended(BaseException):
        """In the place of the end of the process."""

    def end(code: int) -> None:
        raise Ended(code)

    def swollen(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(reading, "_peak_bytes", lambda: peak_bytes)
    monkeypatch.setattr(reading.resource, "getrlimit", lambda _limit: (8 * 1024**3, -1))
    if not peak_bytes:
        monkeypatch.setattr(reading, "_read", swollen)
    (tmp_path / "a.txt").write_text("Partial.")
    with pytest.raises(Ended):
        reading._read_within_memory(tmp_path / "a.txt", "a.txt")
