"""`python -m triptych.cli` is the `triptych` command, for where no script is installed, as in an image."""

from __future__ import annotations

from triptych.cli.main import main

main()
