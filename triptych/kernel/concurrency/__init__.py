"""Limits on coroutines: how long they may take, and what a cancellation by others means."""
