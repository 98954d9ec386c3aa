"""Pairs for a benchmark: two scans prepared as `register` does, or a generated pair, as arrays and as files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...backends.engine_set import load_engine_set
from ...geometry.grid import Grid, fit_to
from ...types import Shape

INTENSITIES = 1000  # scale of a generated pair written as integer scans


@dataclass(frozen=True)
class GeneratedPair:
    """A body of soft blobs and a deformed copy; see `runtime.backends.parity`."""

    shape: Shape

    @property
    def words(self) -> str:
        return f"a generated pair {_by(self.shape)}"

    def make(self, path: Path) -> Shape:
        """Write ``fixed`` and ``moving`` (I, J, K), float32 in [0, 1], to an .npz file; return their shape."""
        from ...backends.parity import example_pair

        fixed, moving = example_pair(self.shape)
        np.savez(path, fixed=fixed, moving=moving)
        return self.shape

    def scans(self, arrays: Path, folder: Path) -> tuple[Path, Path]:
        """Write the pair to a folder as two scans with 1 mm voxels; return their paths."""
        from ...images.formats.nifti_writer import write_volume

        paths = folder / "fixed.nii.gz", folder / "moving.nii.gz"
        with np.load(arrays) as pair:
            for name, path in zip(("fixed", "moving"), paths, strict=True):
                image = np.rint(INTENSITIES * pair[name])
                write_volume(path, image, Grid(self.shape, np.eye(4)), dtype=np.int16)
        return paths


@dataclass(frozen=True)
class RealPair:
    """Two scans on the working grid, after the affine initialisation."""

    fixed: Path
    moving: Path
    engine_dir: Path
    crop_to: Shape | None = None

    @property
    def words(self) -> str:
        cropped = f", cropped or padded to {_by(self.crop_to)}" if self.crop_to else ""
        return f"{self.fixed.name} and {self.moving.name}{cropped}"

    def make(self, path: Path) -> Shape:
        """Write the pair as `GeneratedPair.make` does.

        Raises:
            InputError: the scans cannot be registered.
        """
        from ...images.intensity import rule_from_dict
        from ...images.volume import read_volume
        from ...registration.preprocessing import prepare

        engine_set = load_engine_set(self.engine_dir)
        scans = read_volume(self.fixed, "--fixed"), read_volume(self.moving, "--moving")
        ready = prepare(*scans, engine_set, rule_from_dict(engine_set.intensity))
        shape = self.crop_to or ready.grid.shape
        np.savez(path, fixed=fit_to(ready.fixed, shape), moving=fit_to(ready.moving, shape))
        return shape

    def scans(self, arrays: Path, folder: Path) -> tuple[Path, Path]:
        """Return the two original files, not cropped."""
        return self.fixed, self.moving


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))
