"""The affine initialisation."""
