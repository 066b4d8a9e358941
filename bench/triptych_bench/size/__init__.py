"""What ten million steps in the tables change: the same operations on a small and on a large database, in turn."""
