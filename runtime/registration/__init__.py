"""Registration of a moving scan to a fixed one."""
