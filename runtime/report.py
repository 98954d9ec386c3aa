"""What a registration leaves in its folder: images, transform, report and picture, each whole or not at all."""

import contextlib
import datetime
import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime import __version__
from runtime.geometry.errors import InputError, explained, first_line
from runtime.geometry.transform import write_affine, write_itk_displacement
from runtime.geometry.volume import Source, write_text, write_volume
from runtime.machine import installed_versions, peak_bytes

if TYPE_CHECKING:
    from runtime.registration import Registration

WARPED, WARP, AFFINE, LABELS = "warped.nii.gz", "warp.nii.gz", "affine.txt", "warped_labels.nii.gz"
PREVIEW, REPORT = "preview.png", "report.json"
FORMAT, VERSION = "rpnet-registration", 1
PACKAGES = ("numpy", "nibabel", "numba", "llvmlite", "onnx", "openvino", "onnxruntime", "pillow")
PACKAGES += ("onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-python", "pycuda", "nvidia-cuda-nvrtc")


@explained("--output")
def check_output(folder: Path, overwrite: bool, inputs: Iterable[Path | str | None] = ()) -> None:
    """Before any work: the folder can be written, no input would be replaced, and nothing else unasked.

    A folder that has to be made for the trial is removed again.

    Raises:
        InputError: the folder cannot be written, or holds an earlier result and `overwrite` is False.
    """
    missing = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"--output: cannot write to {folder} ({reason}); choose another folder") from None
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()
    written = {(folder / name).resolve() for name in output_names(labels=True)}
    for path in inputs:
        if path is not None and Path(path).resolve() in written:
            raise InputError(f"--output: would replace the input {path}; choose another folder")
    there = [name for name in output_names(labels=True) if (folder / name).exists()]
    if odd := [name for name in there if not (folder / name).is_file()]:
        raise InputError(f"--output: {folder / odd[0]} is no file and cannot be replaced; choose another folder")
    if there and not overwrite:
        raise InputError(f"--output: {folder} already holds {', '.join(there)}; add --overwrite or choose another")


def output_names(labels: bool) -> tuple[str, ...]:
    """The files of a result, the report last: where it stands, the others do."""
    return (WARPED, WARP, AFFINE, *((LABELS,) if labels else ()), PREVIEW, REPORT)


def save(result: "Registration", folder: Path, overwrite: bool = False, progress=lambda stage: None) -> None:
    """Writes a result; the report is the last file, so that it only stands beside complete results.

    Raises:
        InputError: see `check_output`, and a disk that refuses (full, read-only).
    """
    check_output(folder, overwrite, [source.path for source in result.sources.values()])
    progress("write")
    start = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (REPORT, LABELS):  # the sign of a whole result, and what this one may not have
            (folder / name).unlink(missing_ok=True)
        _write_side_by_side(result, folder)
        seconds = {**result.seconds, "write": time.perf_counter() - start}
        write_text(folder / REPORT, json.dumps(report(result, seconds), indent=2) + "\n")
    except OSError as error:
        reason = error.strerror or first_line(error)  # Pillow's errors have no number and no strerror
        raise InputError(f"--output: writing to {folder} failed ({reason}); free space or choose another") from None


def _write_side_by_side(result: "Registration", folder: Path) -> None:
    """Every file but the report. Threads of `files` check, sum and wait; those of `pool` compress and draw."""
    from runtime.preview import write_preview

    grid, codes, images = result.fixed.grid, result.fixed.codes, result.working
    ncc = (result.similarity_before, result.iterations.similarity) if result.options.similarity == "ncc" else None
    with ThreadPoolExecutor(result.engine["threads"]) as pool, ThreadPoolExecutor(4) as files:
        jobs = [
            pool.submit(write_preview, folder / PREVIEW, *vars(images).values(), result.iterations.flow, ncc),
            files.submit(write_itk_displacement, folder / WARP, result.displacement, grid, codes, pool),
            files.submit(write_volume, folder / WARPED, result.warped, grid, codes, pool=pool),
            files.submit(write_affine, folder / AFFINE, result.transform.affine),
            pool.submit(lambda: result.displacement_mm),  # for the report
        ]
        if result.warped_labels is not None:
            labels = result.warped_labels
            jobs.append(files.submit(write_volume, folder / LABELS, labels, grid, codes, pool=pool))
        for job in jobs:
            job.result()


def report(result: "Registration", seconds: dict[str, float]) -> dict[str, Any]:
    """Everything a reader needs to trust or repeat the result, as plain JSON types."""
    return _plain(
        {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "inputs": {name: _describe(source) for name, source in result.sources.items()},
            "options": vars(result.options),
            "options_sha256": hashlib.sha256(json.dumps(vars(result.options), sort_keys=True).encode()).hexdigest(),
            "schedule": result.schedule.as_dict(),
            "engine": result.engine,
            "affine": {"convention": "RAS mm, fixed to moving", **result.affine_start},
            "working_grid": {"shape": result.transform.grid.shape, "affine": result.transform.grid.affine},
            "iterations": {
                "counts": result.iterations.counts,
                "similarity": result.options.similarity,
                "similarity_after_affine": result.similarity_before,
                "similarity_after": result.iterations.similarity,
                "passes": [[trace.as_dict() for trace in traces] for traces in result.iterations.passes],
            },
            "folded_share": result.folded_share,
            "warnings": result.warnings,
            "displacement_mm_affine_included": result.displacement_mm,
            "seconds": {**seconds, "total": sum(seconds.values())},
            "peak_memory_bytes": peak_bytes(),
            "outputs": output_names(result.labels is not None),
            "versions": versions(),
        }
    )


def summary(result: "Registration") -> str:
    """A few lines for people: what ran, how alike the images became, what the field looks like."""
    found, engine = result.iterations, result.engine
    counts = " + ".join("(" + ", ".join(map(str, passed)) + ")" for passed in found.counts)
    rule = ", ".join(word for word in (result.schedule.name, result.options.on_stop) if word)
    length = result.displacement_mm
    lines = [
        f"engine      {engine['backend']} ({engine['library']}, {engine['device']}, {engine['precision']}, "
        f"{engine['threads']} threads; {engine['reason']})",
        f"iterations  {counts} at levels 4, 3, 2, 1 ({rule})",
        f"similarity  {result.options.similarity} {result.similarity_before:.4f} after the affine, "
        f"{found.similarity:.4f} after registration",
        f"field       mean {length['mean']:.1f} mm, largest {length['max']:.1f} mm, affine included; "
        f"folded voxels {100 * result.folded_share:.3f} %",
        f"time        {sum(result.seconds.values()):.1f} s before writing, of which the loop "
        f"{result.seconds['iterate']:.1f} s",
    ]
    lines += [f"warning     {warning}" for warning in result.warnings]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Python, the platform, and the libraries that ran."""
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


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
