"""How documents are cut, and how two measures become a score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.tools.adapters.kb.calibration import THRESHOLD, Judged, fit, quality
from triptych.tools.adapters.kb.chunks import CHUNK_MAX_CHARS, PASSAGE_MAX_CHARS, Document, chunks

WORDS = st.text("abcdefg .\n", min_size=1, max_size=40)


def test_a_short_document_is_one_chunk_and_a_passage_for_each_paragraph() -> None:
    body = "A paragraph that is long enough to stand for itself, as paragraphs ought to be, or so I am told.\n\n" * 2
    (chunk,) = chunks("*", Document("a", "Title", body.strip()))
    assert chunk.body == body.strip()
    assert len(chunk.passages()) == 2
    assert all(passage.startswith("Title. ") for passage in chunk.passages())


@given(st.lists(WORDS, min_size=1, max_size=400).map("\n\n".join))
def test_no_chunk_is_too_long_and_no_word_is_lost(body: str) -> None:
    cut = chunks("*", Document("a", "T", body))
    assert all(len(chunk.body) <= CHUNK_MAX_CHARS + 2 for chunk in cut)
    assert all(len(passage) <= PASSAGE_MAX_CHARS + len("T. ") for chunk in cut for passage in chunk.passages())
    kept = "".join("".join(chunk.body for chunk in cut).split())
    assert all(word in kept for word in body.split())


def test_a_chunk_begins_with_the_end_of_the_one_before() -> None:
    first, second, *_ = chunks("*", Document("a", "T", " ".join(f"Sentence {n} is here." for n in range(300))))
    assert first.body.endswith(second.body.partition("\n\n")[0])


@pytest.mark.parametrize("sentence", ["従業員は毎年二十日の有給休暇を取得できます。", "客户可以在三十天内申请退款"])
def test_a_term_at_the_border_of_two_chunks_is_whole_in_one_of_them(sentence: str) -> None:
    text = sentence * 400
    cut = chunks("*", Document("a", "T", text))
    assert len(cut) > 1
    for start in range(0, len(text) - 4, 97):
        assert any(text[start : start + 4] in chunk.body.replace(" ", "") for chunk in cut)
    borders = [after.body.partition("\n\n")[0] for after in cut[1:]]
    assert all(
        len(overlap) >= 4 and before.body.endswith(overlap) for before, overlap in zip(cut, borders, strict=False)
    )


def test_content_of_another_tenant_has_another_hash() -> None:
    document = Document("a", "T", "text")
    assert chunks("acme", document)[0].content_hash != chunks("globex", document)[0].content_hash


def test_the_threshold_lies_between_what_is_answered_and_what_is_not() -> None:
    good = [Judged(0.4 + n / 100, 0.6, answered=True) for n in range(30)]
    bad = [Judged(0.1 + n / 100, 0.2, answered=False) for n in range(10)]
    fitted = fit(good + bad)
    assert quality(good + bad, fitted).precision == quality(good + bad, fitted).recall == 1.0
    assert 0 < THRESHOLD < 1
    with pytest.raises(ValueError, match="both kinds"):
        fit(good)
