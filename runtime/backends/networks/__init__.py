"""Libraries that run an engine set's networks, one module or folder per library."""
