"""`triptych models`: what the models were spared, and what that saved."""

from triptych.cli.models.command import models

__all__ = ["models"]
