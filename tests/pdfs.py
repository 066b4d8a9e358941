"""PDF files for tests, the smallest that show something."""

from __future__ import annotations

from collections.abc import Sequence


def pdf(text: str, sixth: bytes | None = None, trailing: bytes = b"") -> bytes:
    """The smallest PDF that has a text in it; a sixth object and what the trailer says of it, if given."""
    return pdf_of(stream(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()), [sixth] if sixth else [], trailing)


def pdf_that_doubles(levels: int) -> bytes:
    """A small PDF whose page draws a form that draws another one twice, and so on: 2^levels texts."""

    def form(content: bytes, resources: bytes = b"") -> bytes:
        kind = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F1 5 0 R>>%s>>" % resources
        return stream(content, kind)

    twice = [form(b"/X Do /X Do", b"/XObject<</X %d 0 R>>" % (7 + level)) for level in range(levels)]
    return pdf_of(stream(b"/X Do"), [*twice, form(b"BT /F1 1 Tf (x) Tj ET")])


FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica%s>>"


def pdf_of(content: bytes, more: Sequence[bytes], trailing: bytes = b"", font: bytes = FONT % b"") -> bytes:
    resources = b"<</Font<</F1 5 0 R>>/XObject<</X 6 0 R>>>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources " + resources,
        content,
        font,
        *more,
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, body)
    size = len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (size, trailing, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (entries, len(content), content)


def pdf_of_pages(texts: Sequence[str]) -> bytes:
    """A PDF with a page for each text; an empty one draws nothing."""
    first = 6
    places = [first + 2 * number for number in range(len(texts))]
    pages: list[bytes] = []
    for place, text in zip(places, texts, strict=True):
        draws = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        pages.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents %d 0 R/Resources<</Font<</F1 5 0 R>>>>>>"
            % (place + 1)
        )
        pages.append(stream(draws.encode()))
    kids = b" ".join(b"%d 0 R" % place for place in places)
    one = pdf_of(stream(b""), pages)
    tree = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    return one.replace(tree, b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(texts)))
