"""A sample pair with a known answer."""
