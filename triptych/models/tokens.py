"""How many tokens a prompt will use, counted by a tokenizer.

No provider ships the tokenizer of its models, so that of Llama 2 is used for all of them. It comes with the embeddings.
Its vocabulary is small: models of today need fewer tokens for nearly everything, and for the rest see below. Dense text
(base64, hex, digits, rare scripts) is several times as many tokens as prose of its size.
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES_A_TOKEN: Final = 3
"""No text is counted as less: prose has four to five bytes a token, JSON about three."""
OVERHEAD_TOKENS: Final = 50
"""Roles, separators and the frame around the tool that carries the answer."""
COUNTED_MAX_CHARS: Final = 262_144
"""The rest of a longer text, which would take seconds, is counted as one token for each byte; more there cannot be."""
_PIECE_CHARS: Final = 2_000
"""A longer piece without spaces takes the square of its length. Each cut adds a token at most."""
_DENSE_BYTES_A_TOKEN: Final = 1.4
_DENSE: Final = re.compile("[\u0530-\u058f\u0980-\u0dff\u0e80-\u1fff]+")
"""Scripts that Llama's vocabulary knows and many others do not: Armenian, most of India, Burmese, Georgian, Khmer."""
_DIGITS: Final = re.compile(r"[0-9]{1,3}")
_GROUPS_DIGITS: Final = re.compile(r"(?:^|[:/])(?:gpt-|chatgpt-|o[1-9]\b)")
"""OpenAI's have one token for three digits, and know all scripts."""
_CLAUDE: Final = re.compile(r"\bclaude\b")
_OF_CLAUDE: Final = 1.35
"""Newer Claude models need up to so many times more for the same text."""


def estimated_tokens(*texts: bytes, model: str = "") -> int:
    """Return how many tokens a prompt will use at most, as far as this is known without the tokenizer of `model`."""
    return OVERHEAD_TOKENS + sum(tokens_of(text, model) for text in texts)


def prepare() -> None:
    """Load the tokenizer, which takes some 0.2 s and 25 MB."""
    _tokenizer()


def tokens_of(text: bytes, model: str = "") -> int:
    """Return how many tokens a part of a prompt will use at most."""
    written = text.decode(errors="replace")
    counted, rest = written[:COUNTED_MAX_CHARS], written[COUNTED_MAX_CHARS:].encode()
    least = (len(text) - len(rest)) / BYTES_A_TOKEN
    if _GROUPS_DIGITS.search(model):
        tokens: float = _count(_DIGITS.sub("0", counted))
    else:
        dense = " ".join(_DENSE.findall(counted))
        tokens = _count(_DENSE.sub("a", counted)) + max(_count(dense), len(dense.encode()) / _DENSE_BYTES_A_TOKEN)
    return math.ceil(max(least, tokens * (_OF_CLAUDE if _CLAUDE.search(model) else 1))) + len(rest)


def _count(text: str) -> int:
    pieces = [text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS)]
    return sum(len(piece.ids) for piece in _tokenizer().encode_batch_fast(pieces, add_special_tokens=False))


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer  # noqa: PLC0415 - most processes count nothing

    package = find_spec("wordllama")
    assert package is not None  # noqa: S101 - a dependency
    assert package.origin is not None  # noqa: S101
    folder = Path(package.origin).parent / "tokenizers"
    tokenizer = Tokenizer.from_file(str(folder / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
