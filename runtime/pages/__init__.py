"""Pages to look at in a browser: a registration, a list of registrations, an evaluation, a benchmark.

A page is one HTML file with its pictures, styles and scripts inside. It is opened from disk, and loads nothing from
elsewhere: its own content security policy forbids it.
"""
