"""Registrations by greedy (PyPI: picsl-greedy), an established classical tool, for comparison."""

from pathlib import Path

from runtime.errors import InputError
from runtime.geometry.transform import AffineTransform, Chain, Transform
from runtime.host.files.whole_files import atomic_path
from runtime.transforms import read_transform
from runtime.transforms.conventions.plain_affine import read_affine

SETTINGS = "-d 3 -m NCC 2x2x2 -n 100x50x10 -threads 1"


class Greedy:
    """Greedy with `SETTINGS`, affine and then deformable; its transforms are kept and reused.

    Args:
        folder: folder of its transforms.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def register(self, fixed: Path, moving: Path, name: str, deformable: bool) -> Transform:
        """Return greedy's transform, fixed -> moving in RAS mm.

        Args:
            fixed, moving: scans.
            name: name of the transform's files.
            deformable: whether to continue after the affine.

        Raises:
            InputError: picsl-greedy is not installed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        matrix, warp = self._folder / f"{name}.mat", self._folder / f"{name}.nii.gz"
        images = f"-i {fixed} {moving}"
        if not matrix.exists():
            _run(f"-a {images} -ia-image-centers", matrix)
        affine = AffineTransform(read_affine(matrix, "greedy"))
        if not deformable:
            return affine
        if not warp.exists():
            _run(f"{images} -it {matrix}", warp)
        return Chain((read_transform(warp, "greedy", convention="itk").transform, affine))


def _run(arguments: str, path: Path) -> None:
    try:
        from picsl_greedy import Greedy3D
    except ImportError:
        raise InputError("--greedy: needs the package picsl-greedy; pip install picsl-greedy") from None
    with atomic_path(path) as temporary:
        Greedy3D().execute(f"{SETTINGS} {arguments} -o {temporary}")
