"""Resampling between grids, linear and with wider support, in compiled code."""
