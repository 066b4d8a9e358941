"""`python -m triptych` is the `triptych` command, for where no script is installed, as in an image."""

from __future__ import annotations

from triptych.commands.main import main

main()
