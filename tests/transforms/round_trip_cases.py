"""What the round trips through other tools have in common: grids, known maps of space, and what must come out.

Every truth is closed-form or SciPy's; nothing of the code under test is asked. Shared by
`tests.transforms.test_round_trips` and ``measurements/round_trips.py``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform, SpatialTransform, Transform, from_displacement
from runtime.transforms import Space

Array = np.ndarray
Triple = tuple[float, float, float]
CENTRE = np.array([12.0, -23.0, 34.0])  # RAS mm; not 0, so that a wrong origin shows
COLUMNS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
TURNED = Rotation.from_euler("xyz", (12, -20, 25), degrees=True).as_matrix()
POINTS_MM, IMAGE_SHARE = 0.1, 1e-3  # the bounds: mm, and share of the intensity range
COMPACT_MM, COMPACT_SHARE = 0.03, 4e-3  # of compact files: `bumps` changes by up to 0.12 of its range per mm
EDGE = 0.02  # voxels from the moving image's border, where tools differ about what is inside
PLACES = 200  # voxels whose places are compared


def grid(axes: str, shape: tuple[int, int, int], spacing: Triple, turn: Array | None = None) -> Grid:
    """A grid about `CENTRE` whose voxels run along `axes`, such as "LIA", turned as a whole."""
    affine = np.eye(4)
    directions = np.array([COLUMNS[letter] for letter in axes], float).T
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ directions @ np.diag(spacing)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


FIXED = {
    "RAS": grid("RAS", (18, 22, 14), (1.5, 1.2, 1.8)),
    "LPS": grid("LPS", (18, 22, 14), (1.5, 1.2, 1.8)),
    "LIA": grid("LIA", (20, 16, 22), (1.3, 1.6, 1.2)),
    "oblique": grid("RAS", (18, 22, 14), (1.5, 1.2, 1.8), TURNED),
    "anisotropic": grid("RAS", (32, 30, 6), (0.8, 0.9, 5.0)),
}
MOVING = {  # of each fixed grid: never its own
    "RAS": grid("LIA", (36, 34, 40), (1.5, 1.6, 1.4), TURNED.T),
    "LPS": grid("LIA", (36, 34, 40), (1.5, 1.6, 1.4)),
    "LIA": grid("RAS", (52, 60, 14), (1.1, 1.0, 4.0)),
    "oblique": grid("LPS", (38, 40, 36), (1.5, 1.4, 1.6)),
    "anisotropic": grid("PSR", (40, 14, 38), (1.4, 4.0, 1.5)),
}


def voxels_of(where: Grid) -> Array:
    """Every voxel, (I J K, 3)."""
    return np.stack(np.meshgrid(*map(np.arange, where.shape), indexing="ij"), -1).reshape(-1, 3)


def bumps(points: Array) -> Array:
    """An image without any symmetry, known at every point of space, 0 to about 270."""
    centres = CENTRE + np.array([[0, 0, 0], [9, 1, 8], [-8, -9, -2], [3, 10, -6], [-5, 6, 9.0]])
    distance = np.linalg.norm(points[..., None, :] - centres, axis=-1)
    return np.exp(-((distance / 7) ** 2)) @ np.array([60.0, 100.0, 80.0, 40.0, 120.0])


def _about_centre(matrix: Array, shift: Triple = (0, 0, 0)) -> Array:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, CENTRE - matrix @ CENTRE + shift
    return affine


def _affines() -> dict[str, Array]:
    """Shifts, rotations and scales along and about each axis, (4, 4) RAS mm, fixed -> moving."""
    shifts, turns, scales = {}, {}, {}
    for axis, (shift, angle, factor) in enumerate(((6, 11, 1.1), (-4, -14, 0.9), (3, 9, 1.2))):
        unit, letter = np.eye(3)[axis], "RAS"[axis]
        shifts[f"shift {letter}"] = _about_centre(np.eye(3), tuple(shift * unit))
        turns[f"rotation {letter}"] = _about_centre(Rotation.from_rotvec(angle * unit, degrees=True).as_matrix())
        scales[f"scale {letter}"] = _about_centre(np.diag(1 + (factor - 1) * unit))
    everything = Rotation.from_euler("xyz", (5, 7, -6), degrees=True).as_matrix() @ np.diag((1.05, 0.95, 1.1))
    return {**shifts, **turns, **scales, "affine": _about_centre(everything, (3, -2, 1.5))}


AFFINES = _affines()


def bent(points: Array) -> Array:
    """A smooth map that is no affine one, up to 3.5 mm."""
    x, y, z = np.moveaxis(points - CENTRE, -1, 0)
    return points + np.stack((2 * np.sin(y / 9) - 1, 2 * np.cos(z / 8 + x / 20), np.sin(x / 10) - 1.5), axis=-1)


@functools.cache
def registration() -> SpatialTransform:
    """What a registration finds: an affine, and a flow on a working grid that is neither image's."""
    rng = np.random.default_rng(2)
    working = grid("RAS", (9, 8, 10), (4.0, 4.0, 4.0))
    return SpatialTransform(AFFINES["affine"], rng.normal(0, 0.4, (3, *working.shape)).astype(np.float32), working)


def registered(points: Array) -> Array:
    """The formula of `registration`, by SciPy."""
    transform = registration()
    voxels = transform.grid.to_voxels(points)
    flow = [map_coordinates(part.astype(float), voxels.T, order=1, mode="nearest") for part in transform.flow]
    moved = transform.grid.to_physical(voxels + np.stack(flow, -1))
    return moved @ transform.affine[:3, :3].T + transform.affine[:3, 3]


MAPS: dict[str, Callable[[Array], Array]] = {
    **{
        name: functools.partial(lambda affine, x: x @ affine[:3, :3].T + affine[:3, 3], a)
        for name, a in AFFINES.items()
    },
    "bent": bent,
    "registration": registered,
}


@dataclass(frozen=True, eq=False)
class Case:
    """A known map between two grids, and what it must do.

    Attributes:
        place: name of the fixed grid.
        map: name of the map.
        fixed, moving: paths of images.
    """

    place: str
    map: str
    fixed: Path
    moving: Path

    @property
    def start(self) -> Space:
        return Space(FIXED[self.place], name=self.fixed.name)

    @property
    def end(self) -> Space:
        return Space(MOVING[self.place], name=self.moving.name)

    @property
    def affine(self) -> Array | None:
        return AFFINES.get(self.map)

    @functools.cached_property
    def voxels(self) -> Array:
        """Some voxels of the fixed grid, (N, 3), its corners among them."""
        random = np.random.default_rng(0).integers(0, self.start.grid.shape, (PLACES - 8, 3))
        return np.concatenate([random, self.start.grid.to_voxels(self.start.grid.corners).round().astype(int)])

    @functools.cached_property
    def points(self) -> Array:
        """Where they lie, RAS mm."""
        return self.start.grid.to_physical(self.voxels)

    @functools.cached_property
    def places(self) -> Array:
        """Where the map takes them."""
        return MAPS[self.map](self.points)

    @functools.cached_property
    def displacement(self) -> Array:
        """``T(x) - x`` on the fixed grid, (I, J, K, 3) float32 RAS mm."""
        points = self.start.grid.to_physical(voxels_of(self.start.grid))
        return (MAPS[self.map](points) - points).reshape(*self.start.grid.shape, 3).astype(np.float32)

    @property
    def transform(self) -> Transform:
        """The map as ours."""
        if self.affine is not None:
            return AffineTransform(self.affine)
        return registration() if self.map == "registration" else from_displacement(self.displacement, self.start.grid)

    @functools.cached_property
    def image(self) -> tuple[Array, Array]:
        """The moving image resampled onto the fixed grid, by SciPy, and where the map stays inside it."""
        moving, shape = self.end.grid, self.start.grid.shape
        places = moving.to_voxels(MAPS[self.map](self.start.grid.to_physical(voxels_of(self.start.grid))))
        inside = np.all((places > EDGE) & (places < np.array(moving.shape) - 1 - EDGE), axis=1)
        return sampled(self.moving_values, places).reshape(shape), inside.reshape(shape)

    @functools.cached_property
    def moving_values(self) -> Array:
        return nib.load(self.moving).get_fdata()

    def miss(self, places: Array) -> float:
        """Largest distance of places (N, 3) of `voxels` from where they must be, mm."""
        return float(np.linalg.norm(places - self.places, axis=1).max())

    def difference(self, image: Array) -> float:
        """Largest difference of a resampled image from what it must be, share of the intensity range."""
        expected, inside = self.image
        return float(np.abs(image - expected)[inside].max() / np.ptp(self.moving_values))


def sampled(values: Array, voxels: Array) -> Array:
    """Trilinear interpolation at (N, 3) voxels, by SciPy."""
    return map_coordinates(values, voxels.T, order=1, mode="nearest")


def write_images(folder: Path, place: str) -> tuple[Path, Path]:
    """Files of images on a fixed grid and its moving one, by nibabel."""
    paths = folder / f"fixed_{place}.nii.gz", folder / f"moving_{place}.nii.gz"
    for path, where in zip(paths, (FIXED[place], MOVING[place]), strict=True):
        values = bumps(where.to_physical(voxels_of(where))).reshape(where.shape).astype(np.float32)
        image = nib.Nifti1Image(values, where.affine)
        image.set_sform(where.affine, 1)
        image.set_qform(where.affine, 1)
        nib.save(image, path)
    return paths
