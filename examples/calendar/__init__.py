"""A calendar of the support team as an MCP server, over streamable HTTP: when can somebody be called back?"""
