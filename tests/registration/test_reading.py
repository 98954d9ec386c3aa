"""Reading a scan for a registration: what is said about its intensities, and that its voxels stay as they are."""

import numpy as np

from runtime.geometry.grid import Grid
from runtime.images.intensity import PercentileRule, WindowRule
from runtime.images.volume import Volume
from runtime.registration.reading import read_scan


def z_scored() -> Volume:
    data = np.zeros((20, 20, 20), np.float32)
    inside = np.random.default_rng(0).normal(size=(12, 12, 12))
    data[4:16, 4:16, 4:16] = (inside - inside.mean()) / inside.std()
    return Volume(data=data, grid=Grid(data.shape, np.eye(4)))


def test_standardised_intensities_are_shifted_with_a_warning():
    scan = z_scored()
    read = read_scan(scan, "--moving", PercentileRule())
    assert read.volume.warnings == (
        "moving: the intensities are standardised (z-scores); they were shifted above 0 for the network",
    )
    assert read.volume.data is scan.data and read.normalised.below_zero == 0
    assert np.array_equal(read.normalised.foreground, scan.data != 0)


def test_with_a_window_they_are_what_they_are():
    read = read_scan(z_scored(), "--moving", WindowRule(-1, 1))
    assert read.volume.warnings == () and read.normalised.below_zero > 0
