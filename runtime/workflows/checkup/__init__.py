"""Examination of two scans and of this machine before any work: what would go wrong, and what to do about it."""
