"""`python -m generate` writes every page that is generated; a test fails when one is not up to date."""

from __future__ import annotations

from generate.pages import PAGES, REFERENCE

for name, render in PAGES.items():
    (REFERENCE / name).write_text(render(), "utf-8")
