"""The SQL adapter: the statements of a file as operations of a tool, held to what the database says of them.

The author of the file writes the SQL; an agent only gives values.
"""

from triptych.tools.adapters.sql.tool import tool

__all__ = ["tool"]
