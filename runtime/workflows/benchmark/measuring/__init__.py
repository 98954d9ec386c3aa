"""Timing, and the accuracy gate before it."""
