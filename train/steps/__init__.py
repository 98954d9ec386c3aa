"""Training steps: the state of a run, loading, validation, numerics, several processes."""
