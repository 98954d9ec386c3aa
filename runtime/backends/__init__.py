"""Backends, the layer below the loop: networks that run engines, the field operations between calls, their pairing."""
