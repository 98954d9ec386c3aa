"""What a run logs: tables, curves and pictures."""
