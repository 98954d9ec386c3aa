"""Scores of registrations on lists of pairs: this project's by any schedule, and transforms of other tools."""
