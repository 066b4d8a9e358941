"""`triptych cost`: what a run of a playbook may cost, before it runs."""

from triptych.cli.cost.command import cost

__all__ = ["cost"]
