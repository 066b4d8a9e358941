"""Triptych as an MCP server: tasks in, outcomes out."""
