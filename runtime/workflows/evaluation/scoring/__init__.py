"""Scores of one pair."""
