"""Options of the benchmark, checked before any work."""

import importlib.util
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ...backends.engines import SHIPPED
from ...backends.registry import BACKENDS, PRECISIONS
from ...errors import InputError
from ...host.files.regular_files import require_file
from ...types import Shape

SHAPE = (160, 192, 160)  # a 1 mm brain
SMALLEST = 16
MULTIPLE = 8
SWEEP = ((64, 64, 64), (96, 96, 96), (128, 128, 128), (128, 160, 128), (160, 192, 160), (192, 224, 192))
PLOTS = (".png", ".svg", ".pdf")
RUNS, RUNS_ON_GPU = 10, 40  # rounds are short on a GPU, and its clock frequencies vary
WARMUP, WARMUP_ON_GPU = 1, 3
ALL = "all"


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of `run_benchmark`.

    Attributes:
        engine_dir: the engine set.
        fixed, moving: two scans, prepared as `register` does; None: a generated pair of `shape`.
        shape: shape of the generated pair; None: 160 x 192 x 160.
        crop_to: brings prepared scans to this shape, cropped or padded about their centre.
        backends, precisions: names, "auto" (what `register` takes) or "all" (what can run here).
        runs, warmup: timed and untimed rounds; None: 10 and 1, or 40 and 3 if all contenders run on a GPU.
        schedule: as in `runtime.Options`; None: iterstop, in a sweep 1,1,1,1.
        threads: CPU threads; None: all cores.
        shapes: shapes of a sweep, measured instead of one pair.
        files: whether to measure whole registrations from file to file too.
        start_up: whether to measure the start-up too, with an empty and a filled cache.
        json, plot, html: files of the record, its picture and its page.
    """

    engine_dir: Path = SHIPPED
    fixed: Path | None = None
    moving: Path | None = None
    shape: Shape | None = None
    crop_to: Shape | None = None
    backends: Sequence[str] = ("auto",)
    precisions: Sequence[str] = ("auto",)
    runs: int | None = None
    warmup: int | None = None
    schedule: str | None = None
    threads: int | None = None
    shapes: Sequence[Shape] = ()
    files: bool = True
    start_up: bool = True
    json: Path | None = None
    plot: Path | None = None
    html: Path | None = None

    def __post_init__(self) -> None:
        self._check_pair()
        for name, shapes in (("--shape", [self.shape]), ("--crop-to", [self.crop_to]), ("--shapes", self.shapes)):
            for shape in filter(None, shapes):
                _check_shape(name, shape)
        for name, count, least in (("--runs", self.runs, 1), ("--warmup", self.warmup, 0)):
            if count is not None and count < least:
                raise InputError(f"{name}: got {count}, expected at least {least}")
        _check_names("--backend", self.backends, BACKENDS)
        _check_names("--precision", self.precisions, PRECISIONS)
        for name, path in (("--json", self.json), ("--plot", self.plot), ("--html", self.html)):
            _check_place(name, path)
        _check_plot(self.plot)

    def rounds(self, on_gpu: bool) -> tuple[int, int]:
        """Return the numbers of timed and warm-up rounds; `on_gpu`: whether all contenders compute on a GPU."""
        runs, warmup = (RUNS_ON_GPU, WARMUP_ON_GPU) if on_gpu else (RUNS, WARMUP)
        return runs if self.runs is None else self.runs, warmup if self.warmup is None else self.warmup

    def _check_pair(self) -> None:
        if (self.fixed is None) != (self.moving is None):
            raise InputError("--fixed, --moving: got one, expected both or neither (a generated pair)")
        for name, path in (("--fixed", self.fixed), ("--moving", self.moving)):
            if path is not None:
                require_file(path, name)
        if self.fixed is not None and self.shape:
            raise InputError("--shape: is for a generated pair, but scans are given; use --crop-to to set their shape")
        if self.fixed is None and self.crop_to:
            raise InputError("--crop-to: is for two scans, but none are given; use --shape for a generated pair")
        if self.shapes and (self.fixed is not None or self.shape):
            raise InputError("--shapes: runs on its own generated pairs; leave out --shape, --fixed and --moving")


def parse_names(given: Sequence[str]) -> tuple[str, ...]:
    """Split several comma-separated lists into names."""
    return tuple(name.strip() for text in given for name in text.split(","))


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse ``default``, or shapes I,J,K separated by blanks.

    Raises:
        InputError: any other text.
    """
    if text.strip() == "default":
        return SWEEP
    try:
        shapes = tuple(tuple(int(size) for size in part.split(",")) for part in text.split())
    except ValueError:
        shapes = ()
    if not shapes or any(len(shape) != 3 for shape in shapes):
        raise InputError(f"--shapes: got {text!r}, expected default, or shapes such as '64,64,64 96,96,96'")
    return cast(tuple[Shape, ...], shapes)


def _check_names(argument: str, names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in ("auto", ALL, *known):
            raise InputError(f"{argument}: got {name!r}, expected auto, {ALL}, or some of {', '.join(known)}")


def _check_shape(argument: str, shape: Shape) -> None:
    if len(shape) != 3 or any(size % MULTIPLE or size < SMALLEST for size in shape):
        raise InputError(f"{argument}: got {shape}, expected three multiples of {MULTIPLE}, at least {SMALLEST}")


def _check_place(argument: str, path: Path | None) -> None:
    if path is None:
        return
    folder = Path(path).parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{argument}: cannot write to {folder} ({error.strerror}); choose another") from None
    if Path(path).is_dir():
        raise InputError(f"{argument}: {path} is a folder, expected a file")


def _check_plot(path: Path | None) -> None:
    if path is None:
        return
    if Path(path).suffix.lower() not in PLOTS:
        raise InputError(f"--plot: got {path}, expected a name ending in {', '.join(PLOTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot: needs the package matplotlib; pip install matplotlib, or leave --plot out")
