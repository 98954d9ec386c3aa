"""The page of a registration, report.html: of a result in memory, or of one that was written before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...backends.engine_set import load_engine_set
from ...errors import InputError
from ...geometry.grid import Grid
from ...geometry.transform import AffineTransform, Transform
from ...host.files.plain_json import read_record
from ...images.intensity import PercentileRule, Rule, WindowRule, rule_from_dict
from ...images.volume import Volume, read_labels, read_volume
from ...pages.registration.images import PageImages
from ...pages.registration.page import Drawn, draw, write_report_page
from ...transforms import read_transform
from ...types import Array
from ..result import RegistrationData
from .folder import AFFINE, LABELS, PAGE, REPORT, REPORT_FORMAT
from .report import iterations_of


def draw_page(result: RegistrationData, full: bool) -> Drawn:
    """Draw what the page shows of a result; see `runtime.pages.registration.page`."""
    working, grid = result.working, result.transform.grid
    labels = None
    if result.warped_labels is not None:
        labels = _on_grid(result.warped_labels, result.fixed.grid, grid)
    flow = np.asarray(result.iterations.flow)
    images = PageImages(working.fixed, working.moving, working.warped, flow, grid, labels)
    return draw(images, iterations_of(result), full)


def rewrite_page(folder: Path, full: bool = False) -> Path:
    """Write the page of an earlier result from its files and its scans, and return its path.

    No engine runs. Masks are not applied again, so the scans are shown as they are in their files.

    Args:
        folder: folder of a result.
        full: as in `draw_page`.

    Raises:
        InputError: the folder holds no complete result, or one of its scans is missing or has changed.
    """
    report = read_record(folder / REPORT, REPORT_FORMAT)
    if not report:
        raise InputError(f"DIR: {folder} holds no {REPORT} of a registration, expected a folder that `register` wrote")
    try:
        images = images_of(folder, report)
        write_report_page(folder / PAGE, draw(images, report["iterations"], full), report)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"DIR: {folder / REPORT} lacks what the page needs ({error!r}); register the pair again"
        ) from None
    return folder / PAGE


def images_of(folder: Path, report: Mapping[str, Any]) -> PageImages:
    """Compute the images of a result on its working grid, from its scans and its transform."""
    from ...images.resampling.resample import resample, resample_through

    fixed, moving = (_scan_of(report, name) for name in ("fixed", "moving"))
    rule = _rule_of(report)
    grid = Grid(tuple(report["working_grid"]["shape"]), np.array(report["working_grid"]["affine"]))
    affine = np.array(report["affine"]["matrix"], np.float64)
    displacement = _transform_of(folder, report).displacement(grid)
    shades = rule.normalise(fixed.data, "fixed"), rule.normalise(moving.data, "moving")
    labels = None
    if (folder / LABELS).exists():
        read = read_labels(folder / LABELS, LABELS)
        labels = _on_grid(read.data, read.grid, grid)
    return PageImages(
        resample(shades[0], fixed.grid, grid),
        resample(shades[1], moving.grid, grid, affine),
        np.ascontiguousarray(resample_through(shades[1], moving.grid, displacement, grid)),
        _flow_of(displacement, grid, affine),
        grid,
        labels,
    )


def _flow_of(displacement: Array, grid: Grid, affine: Array) -> Array:
    """Return the flow (3, I, J, K) in voxels that, followed by the affine, gives a displacement in RAS mm."""
    voxels = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float64) for size in grid.shape), indexing="ij"), axis=-1)
    moved = grid.to_physical(voxels.reshape(-1, 3)) + displacement.reshape(-1, 3)
    back = grid.to_voxels(AffineTransform(affine).inverse().points(moved))
    flow = (back - voxels.reshape(-1, 3)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(flow.reshape(*grid.shape, 3), -1, 0))


def _on_grid(labels: Array, source: Grid, grid: Grid) -> Array:
    from ...images.resampling.resample import resample

    return resample(labels, source, grid, order="nearest")


def _scan_of(report: Mapping[str, Any], name: str) -> Volume:
    """Read a scan of a result; InputError if it is not the one that was registered."""
    facts = report["inputs"][name]
    if facts["path"] is None:
        raise InputError(f"DIR: the {name} scan was given as an array, so no page can be made of it")
    path = Path(facts["path"])
    if not path.exists():
        raise InputError(f"DIR: the {name} scan {path} is not there; put it back, or run this where it was registered")
    volume = read_volume(path, name, report["options"].get("nan"))
    if volume.sha256 != facts["sha256"]:
        raise InputError(f"DIR: the {name} scan {path} has changed since it was registered; register the pair again")
    return volume


def _rule_of(report: Mapping[str, Any]) -> Rule:
    """Return the rule for intensities: the window given, that of the engines if they are still there, or MRI's."""
    if window := report["options"].get("window"):
        return WindowRule(*window)
    try:
        return rule_from_dict(load_engine_set(Path(report["engine"]["engine_dir"])).intensity)
    except InputError:
        return PercentileRule()


def _transform_of(folder: Path, report: Mapping[str, Any]) -> Transform:
    """Read the transform from the fixed to the moving scan, from the first of its files."""
    start, end = (Grid(tuple(facts["shape"]), np.array(facts["affine"])) for facts in _both(report))
    for name, facts in report["transforms"].items():
        if name != AFFINE and facts["start"] == Path(report["inputs"]["fixed"]["path"]).name:
            return read_transform(folder / name, "DIR", facts["convention"], start, end).transform
    raise InputError(
        f"DIR: {folder} has no transform from the fixed to the moving scan; register the pair again with warp among "
        "the --outputs"
    )


def _both(report: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return report["inputs"]["fixed"], report["inputs"]["moving"]
