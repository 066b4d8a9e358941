"""A helpdesk with an HTTP API: the system of record in which the demo's agent acts.

It honours `Idempotency-Key` as payment APIs do, so a repeated write has one effect, and it can be
told to fail. Its state is one SQLite file.
"""
