"""The SQL adapter: the statements of a file as operations of a tool, held to what the database says of them.

Whoever writes the file decides what is asked; an agent gives values and nothing else.
"""

from triptych.tools.adapters.sql.tool import tool

__all__ = ["tool"]
