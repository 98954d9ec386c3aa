"""The Python interface: an open engine set that registers scans, arrays and lists of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..backends.engine_set import load_engine_set
from ..backends.engines import SHIPPED, OpenEngines, open_set
from ..errors import InputError
from ..host.background import Job, Jobs
from ..host.progress import Progress, silent
from ..images.volume import Volume
from ..loop.trace import Iterations
from ..types import Array
from .arrays import register_arrays
from .options import SCAN_OPTIONS, Options
from .reading import Reading, ReadMoving, ReadScan, Scan
from .scans import FixedScan, Registration, register


@dataclass(frozen=True)
class ScanPair:
    """Two scans to be registered by `Engines.register_pairs`: files, or volumes already read.

    Attributes:
        fixed, moving: scans in any orientation, spacing and grid.
        labels: label map in the moving scan's space, to be warped.
        fixed_mask, moving_mask: masks; voxels that are 0 in them do not count.
        name: name of the pair, for progress lines and the caller.
    """

    fixed: Scan
    moving: Scan
    labels: Scan | None = None
    fixed_mask: Scan | None = None
    moving_mask: Scan | None = None
    name: str = ""


@dataclass(frozen=True)
class PairOutcome:
    """The outcome of a pair: exactly one of `result` and `error` is not None."""

    pair: ScanPair
    result: Registration | None = None
    error: InputError | None = None


class Engines(OpenEngines):
    """An open engine set that registers scans and arrays. A context manager; made by `open_engines`.

    Scans are files (NIfTI, MGH, and with SimpleITK NRRD and MetaImage) or volumes already read: skull-stripped brains
    in any orientation, spacing and grid.
    """

    def register(
        self,
        fixed: Scan,
        moving: Scan,
        options: Options | None = None,
        *,
        labels: Scan | None = None,
        fixed_mask: Scan | None = None,
        moving_mask: Scan | None = None,
        progress: Progress = silent,
    ) -> Registration:
        """Register a moving scan to a fixed one, in physical space.

        Args:
            fixed, moving: scans.
            options: options; None: the engine set's defaults.
            labels: label map in the moving scan's space, warped by nearest neighbour.
            fixed_mask, moving_mask: masks; voxels that are 0 do not count, and holes (lesions) do not influence the
                result.
            progress: called with the name of each stage as it begins.

        Raises:
            InputError: invalid input, in one line.
        """
        return register(fixed, moving, self, options, labels, progress, fixed_mask, moving_mask)

    def prepare_fixed(
        self, fixed: Scan, options: Options | None = None, *, mask: Scan | None = None, progress: Progress = silent
    ) -> FixedScan:
        """Read, normalise and encode a fixed scan once, for any number of moving scans.

        Args:
            fixed: scan.
            options: options; None: the engine set's defaults.
            mask: mask; voxels that are 0 in it do not count.
            progress: called with the name of each stage as it begins.

        Raises:
            InputError: invalid input, in one line.
        """
        return FixedScan(fixed, self, options, progress, mask)

    def register_arrays(
        self,
        fixed: Array,
        moving: Array,
        options: Options | None = None,
        *,
        fixed_mask: Array | None = None,
        moving_mask: Array | None = None,
    ) -> Iterations:
        """Register two images on one grid: no files, no affine, no physical coordinates.

        Args:
            fixed, moving: (I, J, K) float32 in [0, 1], sizes multiples of 8; on a GPU, arrays of torch, cupy, numba or
                pycuda may be in its memory already.
            options: schedule, similarity, stop rule and smoothing; None: the engine set's defaults.
            fixed_mask, moving_mask: (I, J, K) on the host, 0 where an image does not count.

        Returns:
            Every decision of the loop, and the flow (3, I, J, K) in voxels, fixed to moving.

        Raises:
            InputError: invalid shapes, intensities or options, or a result that is not finite.
        """
        options = options or Options()
        for name in SCAN_OPTIONS:
            if getattr(options, name) != getattr(Options(), name):
                raise InputError(
                    f"{name}: got {getattr(options, name)!r}, but arrays are on one grid with intensities in [0, 1]; "
                    "leave it out, or register scans"
                )
        options = options.resolved(self.engine_set)
        schedule, similarity = options.build_schedule(), options.similarity
        assert similarity is not None  # the options are resolved
        return register_arrays(self, fixed, moving, schedule, similarity, options.smooth, fixed_mask, moving_mask)

    def register_pairs(
        self, pairs: Iterable[ScanPair], options: Options | None = None, *, progress: Progress = silent
    ) -> Iterator[PairOutcome]:
        """Register pairs one after another; an error in one does not affect the others.

        The next pair is read while one is registered. A fixed scan is prepared once for consecutive pairs, so pairs
        with the same fixed scan should follow one another. Each result is that of `register`, bit for bit.

        Args:
            pairs: pairs of scans, consumed one ahead of the results.
            options: options; None: the engine set's defaults.
            progress: called with the name of each stage as it begins.

        Yields:
            An outcome for each pair, in order.

        Raises:
            InputError: options that are invalid for every pair.
        """
        options = (options or Options()).resolved(self.engine_set)
        options.build_schedule(), options.start
        return self._outcomes(iter(pairs), options, progress)

    def _outcomes(self, pairs: Iterator[ScanPair], options: Options, progress: Progress) -> Iterator[PairOutcome]:
        with Jobs(self.threads) as jobs:
            reading = Reading(jobs, options.rule(self.engine_set), options.nan)
            onto: FixedScan | InputError = InputError("pairs: no fixed scan")  # the first pair brings one
            following = _start_reading(reading, next(pairs, None), None)
            while following:
                here, following = following, _start_reading(reading, next(pairs, None), following.pair)
                progress(here.pair.name or f"{_name(here.pair.fixed)} and {_name(here.pair.moving)}")
                if here.fixed is not None:
                    onto = self._prepare_fixed(here.fixed, options, progress)
                last = not following or following.fixed is not None
                result = onto.try_register(here.moving, progress, last) if isinstance(onto, FixedScan) else onto
                if isinstance(result, InputError):
                    yield PairOutcome(here.pair, error=result)
                else:
                    yield PairOutcome(here.pair, result)

    def _prepare_fixed(self, fixed: Job[ReadScan], options: Options, progress: Progress) -> FixedScan | InputError:
        try:
            return FixedScan(fixed, self, options, progress)
        except InputError as error:
            return error


@dataclass(frozen=True)
class _PairBeingRead:
    """A pair that is being read; `fixed` is None if it is the same as in the previous pair."""

    pair: ScanPair
    fixed: Job[ReadScan] | None
    moving: ReadMoving


def _start_reading(reading: Reading, pair: ScanPair | None, before: ScanPair | None) -> _PairBeingRead | None:
    if pair is None:
        return None
    same = before is not None and _same(pair.fixed, before.fixed) and _same(pair.fixed_mask, before.fixed_mask)
    fixed = None if same else reading.scan(pair.fixed, "--fixed", pair.fixed_mask)
    return _PairBeingRead(pair, fixed, reading.moving(pair.moving, pair.labels, pair.moving_mask))


def _same(one: Scan | None, other: Scan | None) -> bool:
    if isinstance(one, Volume) or isinstance(other, Volume) or one is None or other is None:
        return one is other
    return Path(one) == Path(other)


def _name(scan: Scan) -> str:
    path = scan.path if isinstance(scan, Volume) else scan
    return "a volume" if path is None else Path(path).name


def open_engines(
    engine_dir: Path | str = SHIPPED,
    backend: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    progress: Progress = silent,
) -> Engines:
    """Check an engine set and open it.

    Args:
        engine_dir: folder with `manifest.json` and the graphs; default: the set shipped with the project.
        backend: "auto" or a name of `runtime.backends.registry.BACKENDS`.
        threads: CPU threads for engines and kernels; None: all cores.
        precision: "auto", "fp32", "fp16" or "bf16".
        progress: called when a GPU's engines are built, now or at the first image of another size, which takes a while.

    Raises:
        InputError: an unusable set, or a backend or precision that is not available on this machine.
    """
    return open_set(load_engine_set(engine_dir), backend, threads, precision, progress, kind=Engines)
