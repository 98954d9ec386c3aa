"""Scores of registrations on lists of pairs: ours by any schedule, and other tools' beside them."""
