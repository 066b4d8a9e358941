"""The process of a tool: one attempt at each call, with effect ledger, validation and redaction."""
