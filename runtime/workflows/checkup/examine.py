"""Examination of a pair of scans before any work, in about a second: the scans, the pair, the machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backends.choice import choose_backend, choose_precision
from ...backends.engine_set import ENGINES, EngineSet, load_engine_set
from ...backends.engines import SHIPPED
from ...backends.registry import GRAPHS
from ...host.background import Jobs
from ...host.machine import available_bytes, cores, needed_bytes, processor_name
from ...registration.batch.files import EngineChoice
from ...registration.batch.past_runs import expected_seconds
from ...registration.options import Options
from ...registration.preprocessing import PreparedFixed
from ...registration.reading import Reading, Scan, check_scans_fit
from ...types import Array
from .scan import ExaminedScan, Finding, examine_scan

NAMES = ("fixed", "moving")
SIMILAR = 1.7  # ratio of the volumes of both foregrounds up to which two brains of adults differ
FAR_MM = 40.0  # distance of the centres by the headers that is worth a word


@dataclass(frozen=True, eq=False)
class Checkup:
    """What was found before a registration.

    Attributes:
        fixed, moving: the scans.
        pair: facts on both together.
        machine: facts on this machine and what would run on it.
        findings: everything to know, the scans first.
    """

    fixed: ExaminedScan
    moving: ExaminedScan
    pair: dict[str, Any]
    machine: dict[str, Any]
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all facts and findings as plain types."""
        return {
            "fixed": self.fixed.facts,
            "moving": self.moving.facts,
            "pair": self.pair,
            "machine": self.machine,
            "findings": [vars(finding) for finding in self.findings],
        }


def examine(
    fixed: Scan,
    moving: Scan,
    engines: EngineChoice | None = None,
    options: Options | None = None,
    masks: tuple[Scan | None, Scan | None] = (None, None),
) -> Checkup:
    """Examine two scans and this machine, without opening an engine.

    Args:
        fixed, moving: the scans.
        engines: the engines that would run; None: those that ship, on the backend that `auto` chooses.
        options: options of the registration.
        masks: masks of fixed and moving.

    Raises:
        InputError: input for which `register` would end in the same error.
    """
    engines = engines or EngineChoice(SHIPPED)
    engine_set = load_engine_set(engines.engine_dir)
    engines.check(engine_set)
    options = (options or Options()).resolved(engine_set)
    options.build_schedule()
    rule = options.rule(engine_set)
    check_scans_fit(fixed, moving)
    with Jobs(engines.threads or cores()) as jobs:
        reading = Reading(jobs, rule, options.nan)
        scans = [
            reading.scan(scan, f"--{name}", mask)
            for scan, name, mask in zip((fixed, moving), NAMES, masks, strict=True)
        ]
        one, other = (
            examine_scan(name, scan.take(), rule, engine_set.spacing) for scan, name in zip(scans, NAMES, strict=True)
        )
    pair, found = _pair(one, other, options), [*one.findings, *other.findings]
    found += _pair_findings(pair, one, other, options)
    machine = _machine(one, other, engine_set, engines, options)
    found += _machine_findings(machine)
    return Checkup(one, other, pair, machine, tuple(found))


def _pair(fixed: ExaminedScan, moving: ExaminedScan, options: Options) -> dict[str, Any]:
    body = np.argwhere(fixed.read.normalised.foreground)[::97]
    points = fixed.grid.to_physical(body)
    voxels = moving.grid.to_voxels(points)
    inside = moving.grid.inside(voxels)
    centres = [_centre(scan) for scan in (fixed, moving)]
    volumes = fixed.millilitres, moving.millilitres
    return {
        "overlap_by_headers": float(inside.mean()) if len(inside) else 0.0,
        "centres_apart_mm": float(np.linalg.norm(centres[0] - centres[1])),
        "volume_ratio": volumes[1] / volumes[0] if volumes[0] else None,
        "same_orientation": fixed.facts["orientation"] == moving.facts["orientation"],
        "affine": options.affine,
    }


def _centre(scan: ExaminedScan) -> Array:
    body = scan.read.normalised.foreground
    return scan.grid.to_physical(np.argwhere(body).mean(axis=0)) if body.any() else scan.grid.corners.mean(axis=0)


def _pair_findings(
    pair: dict[str, Any], fixed: ExaminedScan, moving: ExaminedScan, options: Options
) -> Iterator[Finding]:
    if options.affine == "none" and (pair["overlap_by_headers"] < 0.5 or pair["centres_apart_mm"] > FAR_MM):
        yield Finding(
            "both",
            f"by their headers {1 - pair['overlap_by_headers']:.0%} of the fixed body lies outside the moving scan, "
            f"the centres {pair['centres_apart_mm']:.0f} mm apart",
            "--affine auto aligns them first",
        )
    ratio = pair["volume_ratio"]
    low, high = options.volume_factor
    whole = not (fixed.facts["cut_off"] or moving.facts["cut_off"])
    if ratio is not None and whole and not low <= ratio <= high:
        yield Finding(
            "both",
            f"the moving body has {ratio:.3g} times the volume of the fixed one, not {low:g} to {high:g}",
            f"for children and animals give --volume-factor {min(low, ratio / 2):.2g},{max(high, ratio * 2):.2g}; "
            "else check the voxel sizes, or whether one of them shows more than the brain",
        )
    elif ratio is not None and whole and not 1 / SIMILAR <= ratio <= SIMILAR:
        yield Finding(
            "both",
            f"the moving body has {ratio:.3g} times the volume of the fixed one",
            "check whether only one of them is skull-stripped",
        )


def _machine(
    fixed: ExaminedScan, moving: ExaminedScan, engine_set: EngineSet, engines: EngineChoice, options: Options
) -> dict[str, Any]:
    shape = PreparedFixed(fixed.read.normalised, engine_set, options.rule(engine_set)).grid.shape
    backend, reason = choose_backend(engines.backend, engine_set, engines.precision)
    precision = choose_precision(backend, engines.precision, engine_set)
    threads = engines.threads or cores()
    graphs = {name: engine_set.graph_hash(name, GRAPHS[precision]) for name in ENGINES}
    engine = {"backend": backend, "precision": precision, "threads": threads, "engines": graphs}
    working = int(np.prod(shape))
    sizes = [int(np.prod(scan.grid.shape)) for scan in (fixed, moving)]
    return {
        "processor": processor_name(),
        "backend": backend,
        "reason": reason,
        "precision": precision,
        "threads": threads,
        "working_grid": shape,
        "needed_bytes": needed_bytes(working, sizes[0], sizes[1]),
        "available_bytes": available_bytes(),
        "expected_seconds": expected_seconds(engine, options.schedule, working),
    }


def _machine_findings(machine: dict[str, Any]) -> Iterator[Finding]:
    needed, there = machine["needed_bytes"], machine["available_bytes"]
    if there is not None and needed > 0.8 * there:
        yield Finding(
            "machine",
            f"the registration needs about {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB is available",
            "close other programs, or crop the scans",
        )
