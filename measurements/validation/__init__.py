"""Validation on realistic pairs: one data set, two scanners, a template, degraded scans; see `__main__`."""
