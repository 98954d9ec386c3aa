"""Report (for programs) and summary (for people) of a registration."""

import datetime
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ...host.files.hashes import sha256_of_facts
from ...host.machine import installed_versions, peak_bytes
from ...images.volume import Source
from ..result import RegistrationData
from .folder import REPORT_FORMAT

VERSION = 2
PACKAGES: tuple[str, ...] = ("numpy", "nibabel", "numba", "llvmlite", "onnx", "openvino", "onnxruntime", "pillow")
PACKAGES += ("onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-python", "pycuda", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class WrittenTransform:
    """A transform's file.

    Attributes:
        name: name of the file.
        convention: convention of the file.
        start, end: names of the scans, None for those without a file; the transform maps points of the first to the
            second.
        error_mm: largest distance, over random voxels, between the transform and the file, read back.
        tolerance_mm: largest such distance accepted.
    """

    name: str
    convention: str
    start: str | None
    end: str | None
    error_mm: float
    tolerance_mm: float

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "name"}


def report(
    result: RegistrationData,
    seconds: dict[str, float],
    files: Iterable[str],
    written: Iterable[WrittenTransform],
    inverse: bool,
    compact: bool = False,
) -> dict[str, Any]:
    """Return all facts needed to trust or repeat the result, for `runtime.host.files.plain_json.as_json`.

    Args:
        result: the registration.
        seconds: seconds by stage, including writing.
        files: names of the result's files.
        written: its transforms, as written and read back.
        inverse: True if a file was written that needs the inverse.
        compact: True if displacements and Jacobian are stored rounded.
    """
    return {
        "format": REPORT_FORMAT,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": {name: _describe(source) for name, source in result.sources.items()},
        "options": vars(result.options),
        "options_sha256": sha256_of_facts(vars(result.options)),
        "schedule": result.schedule.as_dict(),
        "engine": result.engine,
        "affine": {"convention": "RAS mm, fixed to moving", **result.affine_initialisation},
        "working_grid": {"shape": result.transform.grid.shape, "affine": result.transform.grid.affine},
        "iterations": iterations_of(result),
        "verdict": result.verdict.as_dict(),
        "folded_share": result.folded_share,
        "jacobian": result.volume_change,
        "inverse": result.inverse_quality if inverse else None,
        "compact": compact,
        "transforms": {transform.name: transform.as_dict() for transform in written},
        "warnings": result.warnings,
        "displacement_mm_affine_included": result.displacement_mm,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": peak_bytes(),
        "outputs": tuple(files),
        "versions": versions(),
    }


def iterations_of(result: RegistrationData) -> dict[str, Any]:
    """Return the part of the report on the loop: its counts, similarities and every decision."""
    return {
        "counts": result.iterations.counts,
        "similarity": result.options.similarity,
        "similarity_after_affine": result.similarity_before,
        "similarity_after": result.iterations.similarity,
        "passes": [[trace.as_dict() for trace in traces] for traces in result.iterations.passes],
    }


def summary(result: RegistrationData, inverse: bool = False) -> str:
    """Return a few lines for people: verdict, engine, iterations, similarity, field, its inverse, and warnings."""
    found, engine = result.iterations, result.engine
    counts = " + ".join("(" + ", ".join(map(str, passed)) + ")" for passed in found.counts)
    smooth = f"smooth {result.options.smooth:g}" if result.options.smooth else None
    rule = ", ".join(word for word in (result.schedule.name, result.options.on_stop, smooth) if word)
    length = result.displacement_mm
    lines = [
        f"verdict     {result.verdict}",
        f"engine      {engine['backend']} ({engine['library']}, {engine['device']}, {engine['precision']}, "
        f"{engine['threads']} threads; {engine['reason']})",
        f"iterations  {counts} at levels 4, 3, 2, 1 ({rule})",
        f"similarity  {result.options.similarity} {result.similarity_before:.4f} after the affine, "
        f"{found.similarity:.4f} after registration",
        f"field       mean {length['mean']:.1f} mm, largest {length['max']:.1f} mm, affine included; "
        f"folded voxels {100 * result.folded_share:.3f} %",
    ]
    if inverse:
        quality = result.inverse_quality
        solved, sampled = (quality["consistency_mm"][kind] for kind in ("solved", "sampled"))
        lines.append(
            f"inverse     inverse(forward(x)) within {solved['percentile_95']:.3f} mm of x for 95 % of the points, "
            f"with its file {sampled['percentile_95']:.2f} mm; "
            f"undefined at {100 * quality['unresolved_share']:.3f} % of the voxels"
        )
    lines += [
        f"time        {sum(result.seconds.values()):.1f} s before writing, of which the loop "
        f"{result.seconds['iterate']:.1f} s",
    ]
    lines += [f"warning     {warning}" for warning in result.warnings]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, the platform and the libraries in use."""
    ours = {"rpnet": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return {**ours, **installed_versions(PACKAGES)}


def _describe(source: Source) -> dict[str, Any]:
    return {
        "path": str(source.path) if source.path else None,
        "sha256": source.sha256,
        "shape": source.grid.shape,
        "spacing_mm": source.grid.spacing,
        "affine": source.grid.affine,
    }
