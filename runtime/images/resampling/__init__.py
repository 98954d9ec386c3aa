"""Resampling between grids, with linear and wider kernels, in compiled code."""
