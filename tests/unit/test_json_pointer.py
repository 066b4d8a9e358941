"""References within a schema, followed the same way wherever one is followed."""

from __future__ import annotations

import pytest

from triptych.json_schema import referred

ROOT = {"$defs": {"a b": {"x": 1}, "c/d": {"x": 2}, "e~f": {"x": 3}}, "allOf": [{"x": 4}], "$anchor": "here"}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("#", ROOT),
        ("#/$defs/a%20b", {"x": 1}),
        ("#/$defs/c~1d", {"x": 2}),
        ("#/$defs/e~0f/x", 3),
        ("#/allOf/0", {"x": 4}),
        ("#/allOf/1", None),
        ("#/$defs/nothing/at/all", None),
        ("#$defs", None),
        ("other.json#/$defs", None),
    ],
)
def test_a_reference_leads_to_a_part_of_the_schema_or_to_nothing(reference, found):
    assert referred(ROOT, reference) == found
