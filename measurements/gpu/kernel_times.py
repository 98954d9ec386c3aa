"""Time of every kernel by the GPU's own events, and the minimum time that its memory traffic takes.

Run as a program, it executes each kernel once on a small grid, under compute-sanitizer.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from measurements.gpu.part import Part
from runtime.backends.cuda.device import THREADS
from runtime.backends.fields.cuda import CudaFields
from runtime.backends.fields.cuda_traffic import traffic
from runtime.workflows.benchmark.contenders.process import call_once
from runtime.workflows.benchmark.measuring.statistics import summary
from runtime.workflows.benchmark.report.cells import Table, by, ms

Shape = tuple[int, int, int]
CHANNELS = {1: 8, 2: 16, 3: 32, 4: 32}
COPY_BYTES = 2**30  # of the copy that measures the bandwidth, and its repeats
COPIES = 20
FLUSH_BYTES, FLUSH_BLOCKS = 2**28, 1024  # larger than any cache; read between timed calls so that no input is cached
WARMUP = 3
SCORE_TARGET = 2.0  # times its floor
SMALL = (24, 40, 56)
DISPLACEMENT = 3.0  # voxels, magnitude of the flows
SIGMA = 1.5  # voxels, smoothing of residuals


@dataclass(frozen=True)
class Case:
    """A kernel on some arrays.

    Attributes:
        name, level: name of the kernel, and the level that gives the size.
        least: bytes it must move, see `runtime.backends.fields.cuda_traffic.traffic`.
        work: launches it.
        waits: whether the host waits for the result; the wait is then part of its time.
    """

    name: str
    level: int
    least: int
    work: Callable[[], Any]
    waits: bool = False


def cases(device: Any, fields: Any, shape: Shape) -> Iterator[Case]:
    """Yield every field operation at the sizes of a registration of images of `shape`, in the device's context."""
    images = Images(device, fields, shape)
    for level in (1, 2, 3, 4):
        yield from _feature_cases(device, fields, images, level)
        yield from _flow_cases(device, fields, images, level)
        yield from _score_cases(fields, images, level)
    flow = images.flow(1)
    yield Case("warp image", 1, traffic("warp", shape), lambda: fields.warp(images.moving, flow))
    yield Case("folds", 1, traffic("folded_share", shape), lambda: fields.folded_share(flow), waits=True)
    yield Case("extremes", 1, traffic("extremes", shape), lambda: fields.extremes(images.fixed), waits=True)


class Images:
    """Images, features and flows in a device's memory; flows are smooth and of a few voxels, like real ones."""

    def __init__(self, device: Any, fields: Any, shape: Shape) -> None:
        self.shape, self._device, self._fields = shape, device, fields
        self._random = np.random.default_rng(0)
        self.fixed, self.moving = (device.upload(self._random.random(shape, np.float32)) for _ in range(2))
        self._coarsest = device.upload(self._smooth_flow(self.size(4)))

    def _smooth_flow(self, size: Shape) -> np.ndarray:
        from runtime.geometry.flow import resize

        control = self._random.normal(0, DISPLACEMENT / 8, (3, 2, 3, 2)).astype(np.float32)
        return np.stack([resize(component, size) for component in control], axis=-1).astype(np.float32)

    def size(self, level: int) -> Shape:
        return tuple(size // 2 ** (level - 1) for size in self.shape)

    def flow(self, level: int) -> Any:
        """Return the flow (i, j, k, 3) of a level; the displacement is the same at every level."""
        return self._coarsest if level == 4 else self._fields.upsample(self._coarsest, 2 ** (4 - level))

    def averaged(self, level: int) -> Any:
        """Return the fixed image on a level's grid."""
        return self.fixed if level == 1 else self._fields.halve(self.averaged(level - 1))

    def features(self, level: int, dtype: Any) -> Any:
        """Return random features (i, j, k, C) of a level."""
        values = self._random.random((*self.size(level), CHANNELS[level]), np.float32)
        return self._device.upload(values.astype(dtype))


def _feature_cases(device: Any, fields: Any, images: Images, level: int) -> Iterator[Case]:
    size, channels, flow = images.size(level), CHANNELS[level], images.flow(level)
    for dtype in (np.float16, np.float32):
        features, bits = images.features(level, dtype), 8 * np.dtype(dtype).itemsize
        least = [traffic(operation, size, channels, dtype) for operation in ("warp_into", "carry")]
        last = device.empty((*size, 2 * channels), dtype)
        planar = device.empty((2 * channels, *size), dtype).moveaxis(0, -1)
        for words, buffer in (("", last), (", planar", planar)):
            warp, fill = _bound(fields.warp_into, buffer, features, flow), _bound(fields.fill_fixed, buffer, features)
            yield Case(f"warp features, {bits} bit{words}", level, least[0], warp)
            yield Case(f"fill fixed half, {bits} bit{words}", level, least[1], fill)


def _flow_cases(device: Any, fields: Any, images: Images, level: int) -> Iterator[Case]:
    size, flow = images.size(level), images.flow(level)
    least, residual = traffic("compose", size), device.zeros((3, *size)).moveaxis(0, -1)
    yield Case("compose, residual planar", level, least, lambda: fields.compose(flow, residual))
    yield Case("compose", level, least, lambda: fields.compose(flow, flow))
    smoother = fields.smoother(images.averaged(level), SIGMA)
    yield Case("smooth residual, planar", level, traffic("smooth", size), lambda: smoother(residual))
    if level < 4:
        coarse = images.flow(level + 1)
        yield Case("upsample", level, traffic("upsample", size, scale=2), lambda: fields.upsample(coarse))
        halved, fine = traffic("halve", images.size(level + 1)), images.averaged(level)
        yield Case("halve", level + 1, halved, lambda: fields.halve(fine))


def _score_cases(fields: Any, images: Images, level: int) -> Iterator[Case]:
    flow = images.flow(level)
    for similarity in ("ncc", "mse", "lncc"):
        scorer = fields.scorer(images.fixed, similarity)
        operation = "score lncc" if similarity == "lncc" else "score"
        least = traffic(operation, images.shape, scale=2 ** (level - 1))
        yield Case(f"score {similarity}", level, least, _bound(scorer, images.moving, flow))


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def times(device: Any, work: Callable[[], Any], runs: int, flush: Any = None) -> list[float]:
    """Return the device's seconds of each run, without waits in between; `flush` is read before each, untimed.

    It is read, not written: a cache full of data to be written back would slow down the next kernel.
    """
    marks = []
    blocks = 0 if flush is None else min(FLUSH_BLOCKS, -(-flush.size // THREADS))
    unused = device.empty((2, blocks), np.float64)
    for _ in range(WARMUP + runs):
        if flush is not None:
            device.launch_blocks("extremes", blocks, flush, np.int64(flush.size), unused)
        start = device.mark()
        work()
        marks.append((start, device.mark()))
    device.wait(marks[-1][1])
    return [device.seconds(*pair) for pair in marks[WARMUP:]]


def bandwidth(device: Any, size: int = COPY_BYTES, runs: int = COPIES) -> float:
    """Return the bytes per second that the device's memory reads and writes in total, in the best of some copies."""
    source, target = device.zeros((size,), np.uint8), device.empty((size,), np.uint8)
    found = times(device, lambda: device.driver.copy(target.pointer, source.pointer, size), runs)
    return 2 * size / max(min(found), 1e-9)


def measure(device: Any, shape: Shape, runs: int, copy_bytes: int = COPY_BYTES, flush_bytes: int = FLUSH_BYTES) -> dict:
    """Measure the bandwidth, the time between two consecutive events, and a row for every kernel; plain types."""
    with device.current():
        reached, fields = bandwidth(device, copy_bytes), CudaFields(device)
        flush = device.zeros((flush_bytes // 4,))
        nothing = min(times(device, lambda: None, runs))
        rows = [row(case, times(device, case.work, runs, flush), reached) for case in cases(device, fields, shape)]
    return {"card": device.name, "shape": shape, "bandwidth": reached, "nothing": nothing, "kernels": rows}


def row(case: Case, seconds: list[float], reached: float) -> dict[str, Any]:
    """Summarise a kernel's times: its floor at the bandwidth `reached`, bytes per second, and its share of that."""
    found, floor = summary(seconds), case.least / reached
    facts = {"name": case.name, "level": case.level, "bytes": case.least, "waits": case.waits, "seconds": found}
    share = floor / found["median"] if found["median"] else None
    return {**facts, "floor": floor, "share": share, "samples": seconds}


@dataclass(frozen=True)
class Kernels:
    """Measurement of the GPU's kernels, in a process of its own."""

    shape: Shape
    runs: int

    def measure(self) -> dict[str, Any]:
        from runtime.backends.cuda.open_device import open_device

        return measure(open_device(), self.shape, self.runs)


def kernel_times(shape: Shape, runs: int) -> Part:
    """Measure the kernels of the GPU, as a part of the check."""
    return report(call_once(Kernels(shape, runs), "the kernels", "measure"))


def report(found: dict[str, Any]) -> Part:
    """Return the table of `measure`, with notes on fused scores that are too far above their floor."""
    head = ("ms", "level", "median", "p10", "p90", "floor", "share of bandwidth %", "MB")
    table = [
        [
            kernel["name"] + (" (with its wait)" if kernel["waits"] else ""),
            str(kernel["level"]),
            *(ms(kernel["seconds"][part]) for part in ("median", "p10", "p90")),
            ms(kernel["floor"]),
            "-" if kernel["share"] is None else f"{100 * kernel['share']:.0f}",
            f"{kernel['bytes'] / 1e6:.1f}",
        ]
        for kernel in found["kernels"]
    ]
    words = [
        f"Grid {by(found['shape'])}; a large copy on the GPU moves {found['bandwidth'] / 1e9:.0f} GB/s.",
        f"Caches are flushed before each call. Consecutive events are {ms(found['nothing'])} ms apart.",
        "Floor: the time to read and write each voxel once at that bandwidth.",
    ]
    return Part(
        "Kernels and the memory's bandwidth", [*words, "", *Table(head, table).lines()], found, notes=_misses(found)
    )


def _misses(found: dict[str, Any]) -> list[str]:
    """Return notes on fused scores that are too far above their floor."""
    slow = [kernel for kernel in found["kernels"] if kernel["name"] == "score ncc" and kernel["share"]]
    return [
        f"{kernel['name']}, level {kernel['level']}: {1 / kernel['share']:.1f} times its floor, target {SCORE_TARGET:g}"
        for kernel in slow
        if kernel["share"] * SCORE_TARGET < 1
    ]


def run_once() -> None:
    """Run every kernel once on a small grid; errors of the GPU are raised at the final synchronisation."""
    from runtime.backends.cuda.open_device import open_device

    device = open_device()
    with device.current():
        for case in cases(device, CudaFields(device), SMALL):
            case.work()
        device.driver.synchronize()


if __name__ == "__main__":
    sys.exit(run_once())
