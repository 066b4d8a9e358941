"""A CRM with an HTTP API that describes itself: an example of an API that a company already has.

It honours `Idempotency-Key`. Its state is in memory, so a restarted server is as it was shipped.
"""
