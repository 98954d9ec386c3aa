"""Preparation of native scans for training: aligned with one reference, on one grid, intensities in [0, 1]."""

from .options import AFFINES, PRESETS, PrepareOptions, prepare_options
from .run import Preparation, prepare_scans

__all__ = ["AFFINES", "PRESETS", "Preparation", "PrepareOptions", "prepare_options", "prepare_scans"]
