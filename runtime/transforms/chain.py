"""Chains of transform files from a reference to a scan, as ``-t FILE[,inverse]`` lists them."""

import contextlib
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..geometry.grid import Grid
from ..geometry.transform import AffineTransform, Chain, NumericalInverse, Transform
from ..images.formats.image_file import read_header
from ..images.formats.nifti_bytes import CODES_NOT_KNOWN
from ..images.volume import Source, read_source
from ..types import Array
from . import (
    ConventionError,
    ImagesNeededError,
    Link,
    ReadLink,
    Space,
    TransformFile,
    check_direction,
    check_zooms,
    read_transform,
)


@dataclass(frozen=True)
class Route:
    """A chain of transform files from a reference to a scan, as given to a command.

    Attributes:
        links: transform files, the reference's side first.
        convention: convention of the files that do not say theirs.
        fixed, moving: images where the chain starts and ends, for files that do not name them. If the first and the
            last link are inverted, they are swapped, so that an inverted file keeps its images.
        reference: image on the grid of the result; None: the grid on which the first file starts.
    """

    links: tuple[Link, ...]
    convention: str = "auto"
    fixed: Path | None = None
    moving: Path | None = None
    reference: Path | None = None

    @property
    def is_inverted(self) -> bool:
        """True if the route leads from the moving image to the fixed one."""
        return bool(self.links) and self.links[0].inverse and self.links[-1].inverse

    @property
    def turned(self) -> bool:
        """Alias of `is_inverted`, its earlier name."""
        return self.is_inverted

    @property
    def inputs(self) -> tuple[Path | None, ...]:
        """All files of the route, None where one is not given."""
        return (*(link.path for link in self.links), self.fixed, self.moving, self.reference)


@dataclass(frozen=True, eq=False)
class ReadRoute:
    """A route whose files have been read.

    Attributes:
        links: the reference's side first.
        reference: the image given as reference, or None.
    """

    links: tuple[ReadLink, ...]
    reference: Source | None

    @functools.cached_property
    def transform(self) -> Transform:
        """The transform from the reference's space into the scan's, in as few parts as possible."""
        chain = Chain(tuple(link.transform for link in self.links) or (AffineTransform(np.eye(4)),))
        return chain.merged[0] if len(chain.merged) == 1 else chain

    @property
    def start(self) -> Space | None:
        """The reference's side: the given image or, without one, the start stored in the first file."""
        return space_of(self.reference) or (self.links[0].start if self.links else None)

    @property
    def end(self) -> Space | None:
        """The scan's side, as stored in the last file."""
        return self.links[-1].end if self.links else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the headers of the files, one line each, without repetitions."""
        return tuple(dict.fromkeys(warning for link in self.links for warning in link.file.warnings))

    def require_target(self) -> Source:
        """Return the reference, or the grid on which the first file starts; InputError if neither is known."""
        if self.reference:
            return self.reference
        if self.start:
            return Source(grid=self.start.grid, codes=_codes(self.links[0]))
        why = f"{self.links[0]} does not state the grid on which it starts" if self.links else "there is no -t"
        raise InputError(f"--reference: is needed, since {why}; give an image on the grid of the result")

    def require_start(self) -> Space:
        """Return `start`; InputError if it is unknown."""
        return self._required(self.start, ("--fixed", "--moving"), f"{self.links[0]} does not state where it starts")

    def require_end(self) -> Space:
        """Return `end`; InputError if it is unknown."""
        return self._required(self.end, ("--moving", "--fixed"), f"{self.links[-1]} does not state where it ends")

    def _required(self, side: Space | None, options: tuple[str, str], why: str) -> Space:
        """Return a side that is known; `options` are its names for a chain that is not inverted and for one that is."""
        if side is None:
            option = options[self.links[0].inverse and self.links[-1].inverse]
            raise InputError(f"{option}: is needed, since {why}; give an image on it")
        return side

    def displacement(self) -> Array:
        """Return the displacement of the whole chain on the target's grid, (I, J, K, 3) RAS mm.

        One map for the whole chain, so that voxels are interpolated once.
        """
        return self.transform.displacement(self.require_target().grid)

    def outside(self, points: Array) -> Array:
        """Find the points that some field of the chain takes from outside its grid, where border values continue.

        Args:
            points: (N, 3) RAS mm, in the reference's space.

        Returns:
            (N,) bool.
        """
        found = np.zeros(len(points), bool)
        for link in self.links:
            moved = link.transform.points(points)
            if link.file.transform.matrix is None and link.file.start is not None:
                grid = link.file.start.grid
                # A field is sampled in its start: of an inverted link that is where the points arrive.
                voxels = grid.to_voxels(moved if link.inverse else points)
                found |= ((voxels < -0.5) | (voxels > np.array(grid.shape) - 0.5)).any(axis=1)
            points = moved
        return found

    def map_back(self, points: Array) -> tuple[Array, Array]:
        """Map points of the scan's space into the reference's, through the inverse of each part, solved per point.

        Args:
            points: (N, 3) RAS mm.

        Returns:
            (positions, residuals): (N, 3) RAS mm and (N,) mm; a residual is the sum over the inverted parts of the
            distance between the point and the part's image of the position found for it.
        """
        residuals = np.zeros(len(points))
        for link in reversed(self.transform.merged):
            back = link.inverse()
            if isinstance(back, NumericalInverse):
                points, missed = back.solve(points)
                residuals += missed
            else:
                points = back.points(points)
        return points, residuals


def read_route(route: Route, scan: Source | None = None) -> ReadRoute:
    """Read every file of a route and refuse a chain, or a link of it, in the wrong direction.

    Args:
        route: the route to read.
        scan: the image at the route's end, or None if it is not known.

    Raises:
        InputError: a file that is missing, damaged, of another kind, or needs a grid that is not given.
        DirectionError: a link in the wrong direction, judged by the grids and hashes in the files.
    """
    fixed, moving, reference = (
        None if path is None else read_source(path, f"--{name}")
        for name, path in (("fixed", route.fixed), ("moving", route.moving), ("reference", route.reference))
    )
    begin, end = map(space_of, (moving, fixed) if route.is_inverted else (fixed, moving))
    links, last = [], len(route.links) - 1
    for number, link in enumerate(route.links):
        given = begin if number == 0 else None, end if number == last else None
        at_hand = reference if number == 0 else None, scan if number == last else None
        near, far = (space or space_of(image) for space, image in zip(given, at_hand, strict=True))
        links.append(_completed(_read(link, route, (near, far)), *given))
    check_direction(links, space_of(scan), space_of(reference))
    return ReadRoute(tuple(links), reference)


def _read(link: Link, route: Route, sides: tuple[Space | None, Space | None]) -> ReadLink:
    """Read a link; `sides` are taken where its file does not name its own."""
    sides = sides[::-1] if link.inverse else sides
    try:
        file = _of_its_convention(link, route.convention, *(side.grid if side else None for side in sides))
    except ImagesNeededError as error:
        needed = " ".join(f"--{name} IMAGE" for name in error.images)
        alone = "add" if len(route.links) == 1 else f"first convert by itself: convert -t {link.path} --convention fsl"
        raise InputError(f"{error.reason}; {alone} {needed}") from None
    if file.convention == "fsl":
        check_zooms(*(side for side, its in zip(sides, (file.start, file.end), strict=True) if _taken(side, its)))
    return ReadLink(file, link.inverse)


def _taken(side: Space | None, own: Space | None) -> bool:
    """Return True if a file took the assumed side because it names none itself."""
    return side is not None and own is not None and own.grid is side.grid


def _of_its_convention(link: Link, convention: str, *grids: Grid | None) -> TransformFile:
    """Read a file as the named convention or, if the file states another one, as that."""
    try:
        return read_transform(link.path, "-t", convention, *grids)
    except ConventionError as error:
        with contextlib.suppress(InputError):
            return read_transform(link.path, "-t", "auto", *grids)
        raise error from None


def _completed(link: ReadLink, start: Space | None, end: Space | None) -> ReadLink:
    """Return the link with the given sides where its file does not name its own."""
    start, end = (end, start) if link.inverse else (start, end)
    file = replace(link.file, start=link.file.start or start, end=link.file.end or end)
    return ReadLink(file, link.inverse)


def _codes(link: ReadLink) -> tuple[int, int]:
    """Return the NIfTI (sform, qform) codes of a link's start: a field's header holds those of its fixed image."""
    path = link.file.path
    if link.inverse or not path.name.lower().endswith((".nii", ".nii.gz")):
        return CODES_NOT_KNOWN
    return read_header(path, "-t").codes


def space_of(source: Source | None) -> Space | None:
    """Return an image as one side of a transform."""
    return None if source is None else Space.of(source)
