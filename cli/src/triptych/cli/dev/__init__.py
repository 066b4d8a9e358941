"""`triptych dev`: the embedded stack, and what changes in its files takes effect at once."""

from triptych.cli.dev.command import dev

__all__ = ["dev"]
