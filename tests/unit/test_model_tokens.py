"""How many tokens a prompt is taken for, beside what tokenizers of OpenAI make of it."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from triptych.models import estimated_tokens
from triptych.models.tokens import COUNTED_MAX_CHARS, OVERHEAD_TOKENS

OPENAI = "gpt-5-mini"


def noise(size: int) -> bytes:
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(size // 32 + 1))[:size]


def number(i: int, below: int) -> int:
    return int.from_bytes(hashlib.sha256(str(i).encode()).digest()[:4], "big") % below


TEXTS = {
    "hex": noise(2000).hex(),
    "base64": base64.b64encode(noise(3000)).decode(),
    "digits": ",".join(str(number(i, 100_000)) for i in range(800)),
    "csv": "\n".join(f"{number(i, 10**6)},{number(-i, 10**5) / 100},2026-01-{i % 28 + 1:02}" for i in range(150)),
    "json": json.dumps([{"a": i, "b": number(i, 10**6) / 10**6, "c": [[], {}]} for i in range(100)]),
    "uuids": "\n".join(noise(1600)[i * 16 : i * 16 + 16].hex("-", 4) for i in range(100)),
    "emoji": "😀🎉🏳️‍🌈👩‍👩‍👧" * 100,
    "burmese": "မြန်မာ စာ ကောင်း " * 200,
    "thai": "สวัสดีครับ ผมต้องการคืนสินค้า " * 100,
    "georgian": "თქვენი შეკვეთა ხვალ გაიგზავნება " * 100,
    "amharic": "ትዕዛዝዎ ነገ ይላካል " * 100,
    "japanese": "お客様のご注文は明日発送される予定です。" * 100,
    "russian": "Ваш заказ будет отправлен завтра. " * 100,
    "punctuation": "".join(chr(33 + number(i, 15)) for i in range(2000)),
    "prose": "A ticket that the knowledge base answers gets a reply that cites its articles. " * 100,
}
COUNTED = {
    "hex": (2261, 2251),
    "base64": (2711, 2847),
    "digits": (2394, 2394),
    "csv": (2099, 2099),
    "json": (2202, 2202),
    "uuids": (2222, 2227),
    "emoji": (1700, 2700),
    "burmese": (1401, 6200),
    "thai": (1101, 2400),
    "georgian": (1003, 6000),
    "amharic": (2500, 3301),
    "japanese": (1400, 2200),
    "russian": (701, 1001),
    "punctuation": (1178, 1177),
    "prose": (1501, 1501),
}
"""By the tokenizers o200k and cl100k; the second stands for smaller vocabularies."""


@pytest.mark.parametrize("kind", TEXTS)
def test_no_text_is_taken_for_fewer_tokens_than_a_real_tokenizer_makes_of_it(kind: str) -> None:
    text = TEXTS[kind].encode()
    of_openai, of_smaller = COUNTED[kind]
    assert of_openai <= estimated_tokens(text, model=OPENAI) - OVERHEAD_TOKENS
    assert of_smaller <= estimated_tokens(text) - OVERHEAD_TOKENS


@pytest.mark.parametrize("kind", ["hex", "base64", "digits", "csv", "json", "uuids"])
def test_what_is_dense_may_use_most_of_a_grant_where_the_tokenizer_is_known(kind: str) -> None:
    of_openai, _ = COUNTED[kind]
    assert estimated_tokens(TEXTS[kind].encode(), model=OPENAI) - OVERHEAD_TOKENS <= 1.6 * of_openai


def test_newer_models_of_anthropic_need_more_for_the_same_text() -> None:
    text = TEXTS["json"].encode()
    assert estimated_tokens(text, model="claude-opus-4-7") > 1.3 * estimated_tokens(text, model="llama-3.3-70b")


def test_the_rest_of_a_text_that_is_too_long_to_be_counted_is_counted_by_its_bytes() -> None:
    counted = estimated_tokens(b"a " * (COUNTED_MAX_CHARS // 2))
    assert estimated_tokens(b"a " * (COUNTED_MAX_CHARS // 2) + b"b" * 1_000) == counted + 1_000
