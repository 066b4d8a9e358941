"""Deterministic simulation: the real decider and worker code on a simulated bus, database and clock.

A seed decides everything: what runs there are, how long each message and statement takes, and what goes
wrong at which of them. The same seed gives the same schedule, event for event.
"""
