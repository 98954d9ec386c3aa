"""Cohorts: every pair of a table registered once, by one process or many, with a record of each, resumed by content."""
