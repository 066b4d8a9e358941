"""The generated pages of the documentation say what the code says now."""

from __future__ import annotations

import pytest

from generate.pages import PAGES, REFERENCE


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (REFERENCE / name).read_text("utf-8") == PAGES[name](), "run `make docs`"
