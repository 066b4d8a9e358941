"""The executor: the decider that alone owns run state. Read `machine.py` first."""
