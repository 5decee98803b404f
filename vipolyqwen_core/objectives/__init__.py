"""Losses on vectors: pure functions, the routing from task to losses, negatives over ranks and chunks."""
