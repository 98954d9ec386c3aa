"""Result of a registration: images, transform, every decision of the loop, and warnings."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.verdict_limits import VerdictLimits
from ..geometry.flow import sample
from ..geometry.grid import Grid
from ..geometry.inverse import Inversion, invert_displacement, spread
from ..geometry.jacobian import folded_share, jacobian_of_displacement
from ..geometry.transform import AffineTransform, SpatialTransform
from ..images.intensity import FOREGROUND
from ..images.label_position import label_position_warnings
from ..images.volume import Source, Volume
from ..loop.schedules import Schedule
from ..loop.trace import Iterations
from ..types import Array
from .options import Options
from .quality.figures import Figures, Seen, figures
from .quality.verdict import Verdict, judge

DARK_SHARE = 0.05  # share of voxels below 0 above which a scan is probably CT
SMALL, USUAL = 24, 160  # foreground extent in working voxels: too small for the network; usual for a head
OUTSIDE_VIEW_SHARE = 0.05  # share of the fixed foreground outside the moving scan, above which to warn
SAMPLES = 20_000  # voxels at which the inverse is checked
LOW_NCC = 0.6  # below which to warn; brains of one contrast reach 0.9 and more


@dataclass(frozen=True, eq=False)
class RegistrationData:
    """The result of a registration; its subclass `runtime.registration.scans.Registration` can also save it.

    Attributes:
        fixed_volume: the fixed scan as read; results that share it share its voxels.
        fixed_background: intensity of its background.
        moving: source and grid of the moving scan; its voxels are not kept.
        labels: moving labels as read, or None.
        masks: masks of fixed and moving; each None: all voxels count.
        below_zero: shares of the voxels of fixed and moving whose intensity was below 0.
        warped: moving on the fixed grid, (I, J, K) float32, interpolated once.
        warped_labels: labels on the fixed grid, or None.
        transform: fixed -> moving in RAS mm, affine and flow.
        displacement: (I, J, K, 3) float32, RAS mm, of the whole transform on the fixed grid.
            This and the warped images have the memory order of files: first axis fastest.
        iterations: every decision of the loop.
        working: fixed, moving (affine only) and warped on the working grid, (I, J, K) in [0, 1], for pictures.
        similarity_before: similarity after the affine initialisation, before any flow.
        folded_share: share of working voxels whose Jacobian determinant is <= 0.
        affine_initialisation: facts on how the affine was found.
        limits: limits of plausible registrations, by which the verdict is made.
        options, schedule: as used.
        engine: facts on the engines in use.
        seconds: seconds by stage; if a fixed scan serves several moving ones, its share is in the first result.

    The inverse direction (`inversion`, `warped_fixed`) is computed on first use, and kept.
    """

    fixed_volume: Volume
    fixed_background: float
    moving: Source
    labels: Volume | None
    masks: tuple[Source | None, Source | None]
    below_zero: tuple[float, float]
    warped: Array
    warped_labels: Array | None
    transform: SpatialTransform
    displacement: Array
    iterations: Iterations
    working: "WorkingImages"
    similarity_before: float
    folded_share: float
    affine_initialisation: dict[str, Any]
    limits: VerdictLimits
    options: Options
    schedule: Schedule
    engine: dict[str, Any]
    seconds: dict[str, float]

    @property
    def affine_start(self) -> dict[str, Any]:
        """Alias of `affine_initialisation`, its earlier name."""
        return self.affine_initialisation

    @property
    def fixed(self) -> Source:
        """Source and grid of the fixed scan."""
        return self.fixed_volume.source

    @functools.cached_property
    def inversion(self) -> Inversion:
        """The inverse displacement on the moving grid, moving -> fixed in RAS mm, and its accuracy."""
        return invert_displacement(self.transform, self.moving.grid)

    @functools.cached_property
    def warped_fixed(self) -> Array:
        """Fixed on the moving grid, (I, J, K) float32, through the inverse displacement, interpolated once."""
        displacement = self.inversion.displacement
        return warp_volume(self.fixed_volume, displacement, self.moving.grid, self.fixed_background)

    @functools.cached_property
    def jacobian(self) -> Array:
        """Determinant of the Jacobian of the whole transform on the fixed grid, (I, J, K) float32; <= 0 is a fold."""
        return jacobian_of_displacement(self.displacement, self.fixed.grid)

    @functools.cached_property
    def volume_change(self) -> dict[str, float]:
        """Volume change of the whole transform over the fixed grid: extreme determinants and share of folded voxels."""
        low, high = float(self.jacobian.min()), float(self.jacobian.max())
        return {"min": low, "max": high, "folded_share": folded_share(self.jacobian)}

    @functools.cached_property
    def consistency_mm(self) -> dict[str, dict[str, float]]:
        """Distance of inverse(forward(x)) from x, mm, at random points of the foreground where nothing is folded.

        "solved": with `transform.inverse`, solved point by point. "sampled": with the displacement on the moving grid,
        which interpolation between voxels makes less exact for a rough field.
        """
        rng = np.random.default_rng(0)
        seen = rng.permutation(np.flatnonzero(self.working.fixed > 0))[:SAMPLES]
        voxels = np.stack(np.unravel_index(seen, self.working.fixed.shape), axis=-1)
        points = self.transform.grid.to_physical(voxels + rng.uniform(-0.5, 0.5, voxels.shape))
        nearest = np.rint(self.fixed.grid.to_voxels(points)).astype(int).clip(0, np.array(self.fixed.grid.shape) - 1)
        points = points[self.jacobian[tuple(nearest.T)] > 0]
        mapped = self.transform.points(points)
        sampled = mapped + interpolated(self.inversion.displacement, self.moving.grid, mapped)
        returned = {"solved": self.transform.inverse().points(mapped), "sampled": sampled}
        return {name: spread(np.linalg.norm(found - points, axis=1)) for name, found in returned.items()}

    @property
    def inverse_quality(self) -> dict[str, Any]:
        """Accuracy of the inverse: the figures of `Inversion`, and `consistency_mm`."""
        found = {name: value for name, value in vars(self.inversion).items() if name != "displacement"}
        return {**found, "consistency_mm": self.consistency_mm}

    @functools.cached_property
    def quality(self) -> Figures:
        """Figures on the result's plausibility, which need no labels."""
        images, transform = self.working, self.transform
        pictures = images.fixed, images.moving, images.warped, images.holes
        return figures(Seen(*pictures, transform.flow, transform.grid, transform.affine, self.affine_initialisation))

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Whether the result can be used, should be looked at, or failed, and why."""
        return judge(self.quality, self.limits)

    @property
    def sources(self) -> dict[str, Source]:
        """All images that were read, by their names in the report."""
        read = {"fixed": self.fixed, "moving": self.moving, "moving_labels": self.labels}
        read |= dict(zip(("fixed_mask", "moving_mask"), self.masks, strict=True))
        return {name: source for name, source in read.items() if source is not None}

    @functools.cached_property
    def displacement_mm(self) -> dict[str, float]:
        """Length of the whole transform's displacement, affine included, over the fixed grid, mm."""
        x, y, z = self.displacement.T
        return spread(np.sqrt(x * x + y * y + z * z))

    @functools.cached_property
    def _foreground(self) -> tuple[Array, Array]:
        """Extent of the fixed foreground on the working grid in voxels, (3,), and some of its voxels, (N, 3)."""
        voxels = np.argwhere(self.working.fixed > FOREGROUND)
        extent = np.ptp(voxels, axis=0) + 1 if len(voxels) else np.zeros(3, int)
        return extent, voxels[:: 1 + len(voxels) // SAMPLES].copy()  # not a view, which would keep all of them

    @functools.cached_property
    def outside_view_share(self) -> float:
        """Share of the fixed foreground that, after the affine, lies outside the moving scan's field of view."""
        _, foreground = self._foreground
        points = AffineTransform(self.transform.affine).points(self.transform.grid.to_physical(foreground))
        voxels = self.moving.grid.to_voxels(points)
        return float(1 - np.mean(self.moving.grid.inside(voxels))) if len(foreground) else 0.0

    @property
    def unseen_share(self) -> float:
        """Alias of `outside_view_share`, its earlier name."""
        return self.outside_view_share

    def _size_warnings(self) -> Iterator[str]:
        """Yield warnings on a body too small for the network, or cut off by the moving scan's field of view."""
        extent, _ = self._foreground
        if 0 < (longest := int(extent.max())) < SMALL:
            size, spacing = " x ".join(map(str, extent)), np.mean(self.transform.grid.spacing)
            yield (
                f"the fixed scan's foreground spans only {size} voxels of the network's {spacing:.2g} mm grid, a head "
                f"about {USUAL}; multiply the voxel sizes in both headers by {round(USUAL / longest)}, or give an "
                "engine set that was exported with a smaller --spacing"
            )
        if self.outside_view_share > OUTSIDE_VIEW_SHARE:
            yield (
                f"{self.outside_view_share:.0%} of the fixed foreground lies outside the moving scan's field of view, "
                "where the transform is extrapolated; give a --fixed-mask of what both show, or crop the fixed scan"
            )

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the headers, the intensities and the result, one line each."""
        lines = [line for source in self.sources.values() for line in source.warnings]
        for name, share in zip(("fixed", "moving"), self.below_zero, strict=True):
            if self.options.window is None and share > DARK_SHARE:
                lines.append(f"{name}: {share:.0%} of the voxels are below 0 and count as 0; is it CT? give --window")
        lines += self._size_warnings()
        if not self.fixed.grid.orthogonal:
            lines.append("the fixed image's axes are sheared; ITK and ANTs cannot read images or warps on such a grid")
        if self.iterations.similarity < self.similarity_before:
            lines.append(
                f"the images are less similar than after the affine ({self.options.similarity} "
                f"{self.iterations.similarity:.4f}, before {self.similarity_before:.4f}); were they aligned already?"
            )
        if note := self.affine_initialisation.get("note"):
            lines.append(f"affine initialisation: {note}")
        if self.options.similarity == "ncc" and self.iterations.similarity < LOW_NCC:
            lines.append(f"the similarity is low ({self.iterations.similarity:.2f}); check preview.png")
        if self.labels is not None:
            lines += label_position_warnings(self.labels.grid, self.moving.grid, "--moving-labels", "the moving scan")
        for name, mask, scan in zip(("fixed", "moving"), self.masks, (self.fixed, self.moving), strict=True):
            if mask is not None:
                lines += label_position_warnings(mask.grid, scan.grid, f"--{name}-mask", f"the {name} scan", "mask")
        if self.labels is not None and self.labels.data.any():
            assert self.warped_labels is not None  # as are the labels
            if not self.warped_labels.any():
                lines.append("no label falls on the fixed image")
        return tuple(lines)


def interpolated(displacement: Array, grid: Grid, points: Array) -> Array:
    """Return a displacement (I, J, K, 3) on a grid at points (N, 3) RAS mm: trilinear, border values continue."""
    voxels = np.clip(grid.to_voxels(points), 0, np.array(grid.shape) - 1)
    return sample(np.moveaxis(displacement, -1, 0), voxels.T).T


def warp_volume(volume: Volume, displacement: Array, grid: Grid, outside: float, order: str = "linear") -> Array:
    """Resample a volume through a displacement (I, J, K, 3) on a grid, with `resample_through`."""
    from ..images.resampling.resample import resample_through

    return resample_through(volume.data, volume.grid, displacement, grid, order, outside)


@dataclass(frozen=True, eq=False)
class WorkingImages:
    """The network's input images, (I, J, K) float32 in [0, 1] on one grid, and the warped moving image.

    Attributes:
        fixed, moving, warped: moving after the affine, warped after the flow; holes are filled.
        holes: (I, J, K) bool, where fixed and moving are unknown; each None: nowhere.
    """

    fixed: Array
    moving: Array
    warped: Array
    holes: tuple[Array | None, Array | None] = (None, None)
