"""Compiled loops of `runtime.geometry`."""
