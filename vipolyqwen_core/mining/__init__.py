"""Hard negatives that nobody wrote down: targets of other pairs that a model finds near a query."""
