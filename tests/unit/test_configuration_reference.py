"""What is generated in docs/ is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_reference_is_generated_from_the_settings_as_they_are() -> None:
    rendered = runpy.run_path(str(DOCS / "generate.py"))["render"]()
    assert (DOCS / "configuration.md").read_text() == rendered, "run `make docs`"
