"""Transforms of ITK and ANTs."""
