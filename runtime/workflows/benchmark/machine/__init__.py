"""Facts about the computer that a benchmark ran on."""
