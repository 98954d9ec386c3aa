"""Contenders of the benchmark, and the processes they run in."""
