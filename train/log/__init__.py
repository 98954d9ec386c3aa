"""The logs of a run: tables, curves and pictures."""
