"""What a regular expression of a schema costs, found out by compiling it within smaller and larger limits.

The engine of the validator is linear where a pattern needs no look-around and no back-reference. Even so a
character may cost microseconds: as many as the compiled pattern has kilobytes, as measured with patterns such as
`[ab]*a[ab]{1000}z` that defeat its cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import jsonschema_rs

BACKTRACKS_MAX: Final = 10_000
"""Steps back of one match, for patterns that need look-around or back-references."""
PATTERN_MAX_CHARS: Final = 4_096
PATTERN_MAX_BYTES: Final = 1_048_576
"""Size of one compiled pattern; `[a-z]{1,255}` has 16 KiB, `.{1,255}` has 512."""
CACHE_MAX_BYTES: Final = 131_072
"""What the engine may remember of the states that it met, for each pattern."""
LIMITS: Final = {"backtrack_limit": BACKTRACKS_MAX, "size_limit": PATTERN_MAX_BYTES, "dfa_size_limit": CACHE_MAX_BYTES}
OPTIONS: Final = jsonschema_rs.FancyRegexOptions(**LIMITS)

_SIZES_BYTES: Final = (4_096, 16_384, 65_536, 262_144, PATTERN_MAX_BYTES)
_UNITS_PER_KIB: Final = 40
_UNITS_BACKTRACKING: Final = 2_600


class PatternTooLargeError(ValueError):
    """A pattern is longer than is allowed, or becomes too large when it is compiled."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        super().__init__(
            f"the pattern {pattern[:80]!r} is too large: at most {PATTERN_MAX_CHARS} characters and "
            f"{PATTERN_MAX_BYTES} bytes compiled; use smaller counts in braces, or `maxLength`"
        )


class PatternCost(NamedTuple):
    size_bytes: int
    units_per_char: int
    """Units of work, see `structure`, at the very most."""
    is_linear: bool
    """Whether it needs no look-around and no back-reference."""


@lru_cache(maxsize=4_096)
def check_pattern(pattern: str) -> PatternCost:
    """Return the cost of a pattern.

    Raises:
        PatternTooLargeError: it has a form that costs too much in any text.
        ValueError: it is not a regular expression of JSON Schema.
    """
    if len(pattern) > PATTERN_MAX_CHARS:
        raise PatternTooLargeError(pattern)
    for size_bytes in _SIZES_BYTES:
        if _compiles(pattern, jsonschema_rs.RegexOptions(size_limit=size_bytes)):
            return PatternCost(size_bytes, size_bytes // 1_024 * _UNITS_PER_KIB, is_linear=True)
    if _compiles(pattern, OPTIONS):
        return PatternCost(PATTERN_MAX_BYTES, _UNITS_BACKTRACKING, is_linear=False)
    if _compiles(pattern, jsonschema_rs.FancyRegexOptions()):
        raise PatternTooLargeError(pattern)
    raise ValueError(f"{pattern[:80]!r} is not a regular expression")


def _compiles(pattern: str, options: jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions) -> bool:
    try:
        jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=options, offline=True)
    except ValueError:
        return False
    return True
