"""Grids, flows and spatial transforms: reference implementations in NumPy, and compiled code for large fields."""
