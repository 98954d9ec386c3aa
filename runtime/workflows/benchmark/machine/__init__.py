"""Facts about the machine that a benchmark ran on."""
