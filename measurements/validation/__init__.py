"""Validation on pairs as users have them: one data set, two scanners, a template, degraded scans; see `__main__`."""
