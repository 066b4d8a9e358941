"""A CRM with an HTTP API that describes itself: what stands in for an API that somebody already has.

It honours `Idempotency-Key`. Its state is in memory, so a restarted server is as it was shipped.
"""
