"""How it is timed, and the accuracy gate before it."""
