"""What a registration gives: images, transform, every decision, and the doubts about them."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import iterstop
from runtime.geometry.transform import SpatialTransform
from runtime.geometry.volume import Source, Volume
from runtime.options import Options
from runtime.stages import Progress, silent

Array = np.ndarray
DARK_SHARE = 0.05  # of voxels below 0, from which on a scan is probably CT
LOW_NCC = 0.6  # brains of one contrast reach 0.9 and more


@dataclass(frozen=True)
class Registration:
    """What a registration gives.

    Attributes:
        fixed, moving: where the scans came from and where they lie; their voxels are not kept.
        labels: moving labels as read, or None.
        below_zero: shares of the voxels of fixed and moving whose intensity was below 0.
        warped: moving on the fixed grid, (I, J, K) float32, interpolated once.
        warped_labels: labels on the fixed grid, or None.
        transform: fixed -> moving in RAS mm, affine and flow.
        displacement: (I, J, K, 3) float32, RAS mm, of the whole transform on the fixed grid.
            This and what is warped have the order of files in memory: first axis fastest.
        iterations: every decision of the loop.
        working: fixed, moving (affine only) and warped on the working grid, (I, J, K) in [0, 1], for pictures.
        similarity_before: similarity after the affine start, before any flow.
        folded_share: share of working voxels whose Jacobian determinant is <= 0.
        affine_start: facts on how the affine was found.
        options, schedule: as run.
        engine: facts on what ran.
        seconds: by stage; of a fixed scan that serves several moving ones, its part is in the first one's.
    """

    fixed: Source
    moving: Source
    labels: Volume | None
    below_zero: tuple[float, float]
    warped: Array
    warped_labels: Array | None
    transform: SpatialTransform
    displacement: Array
    iterations: iterstop.Iterations
    working: "WorkingImages"
    similarity_before: float
    folded_share: float
    affine_start: dict[str, Any]
    options: Options
    schedule: iterstop.Schedule
    engine: dict[str, Any]
    seconds: dict[str, float]

    @property
    def sources(self) -> dict[str, Source]:
        """Everything that was read, by its name in the report."""
        read = {"fixed": self.fixed, "moving": self.moving, "moving_labels": self.labels}
        return {name: source for name, source in read.items() if source is not None}

    @functools.cached_property
    def displacement_mm(self) -> dict[str, float]:
        """Length of the whole transform's displacement, affine included, over every 2nd voxel of the fixed grid."""
        length = np.linalg.norm(self.displacement[::2, ::2, ::2], axis=-1)
        percentile = float(np.percentile(length, 95))
        return {"mean": float(length.mean()), "percentile_95": percentile, "max": float(length.max())}

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about the headers, the intensities and the result, one line each."""
        lines = [line for source in self.sources.values() for line in source.warnings]
        for name, share in zip(("fixed", "moving"), self.below_zero, strict=True):
            if self.options.window is None and share > DARK_SHARE:
                lines.append(f"{name}: {share:.0%} of the voxels are below 0 and count as 0; is it CT? give --window")
        if not self.fixed.grid.orthogonal:
            lines.append("the fixed image's axes are sheared; ITK and ANTs cannot read images or warps on such a grid")
        if self.iterations.similarity < self.similarity_before:
            lines.append(
                f"the images are less alike than after the affine ({self.options.similarity} "
                f"{self.iterations.similarity:.4f}, before {self.similarity_before:.4f}); were they aligned already?"
            )
        if note := self.affine_start.get("note"):
            lines.append(f"affine start: {note}")
        if self.options.similarity == "ncc" and self.iterations.similarity < LOW_NCC:
            lines.append(f"the similarity is low ({self.iterations.similarity:.2f}); look at preview.png")
        if self.labels is not None and not self.labels.grid.close(self.moving.grid):
            lines.append("the label map is not on the moving scan's grid; it is used where its header says")
        if self.labels is not None and self.labels.data.any() and not self.warped_labels.any():
            lines.append("no label falls on the fixed image")
        return tuple(lines)

    def save(self, folder: Path | str, overwrite: bool = False, progress: Progress = silent) -> None:
        """Writes images, transform, report and picture into a folder; see `runtime.report`."""
        from runtime.report import save

        save(self, Path(folder), overwrite, progress)

    def summary(self) -> str:
        """A few lines for people."""
        from runtime.report import summary

        return summary(self)


@dataclass(frozen=True)
class WorkingImages:
    """The images the network saw, (I, J, K) float32 in [0, 1] on one grid, and the warped moving image."""

    fixed: Array
    moving: Array
    warped: Array
