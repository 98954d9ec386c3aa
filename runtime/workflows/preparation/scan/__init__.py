"""Preparation of one scan."""
