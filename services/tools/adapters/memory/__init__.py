"""The memory adapter: facts that outlive a run, by tenant and subject, with their source and an end."""

from triptych.tools.adapters.memory.tool import tool

__all__ = ["tool"]
