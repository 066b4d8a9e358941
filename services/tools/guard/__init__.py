"""Protect the upstream of a tool: circuit breakers, bulkheads and rate limits."""
