"""What every Triptych service stands on: bus, database, decider loop, worker loop. It knows no service."""
