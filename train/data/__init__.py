"""Training pairs, from lists of volumes or synthetic."""
