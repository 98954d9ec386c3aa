"""Workflows: demo, evaluation, benchmark and preparation of data sets; none imports another."""
