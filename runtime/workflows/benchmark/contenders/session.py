"""Session of a contender in its own process: open it, load a pair, run it and query it, one call at a time."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....host.machine import peak_bytes
from ....host.progress import Progress, silent
from ....types import Array
from ..machine.host import Interference
from .contender import Contender, EngineRunner, Runner, RunResult, RunSettings, solve

if TYPE_CHECKING:
    from ....images.volume import Volume


@dataclass
class Session:
    """A contender and, once opened and loaded, its runner, a pair of images and a fixed side.

    Attributes:
        contender: contender to open.
        progress: receives a line before slow steps; set by the worker, which passes it on.
    """

    contender: Contender
    progress: Progress = silent
    runner: Runner | None = field(default=None, init=False)
    images: dict[str, Array] = field(default_factory=dict, init=False)
    side: Any = field(default=None, init=False)
    volumes: "tuple[Volume, Volume] | None" = field(default=None, init=False)

    def open(self) -> dict[str, Any]:
        """Open the contender; return its facts, and the seconds taken with all imports."""
        start = time.perf_counter()
        self.runner = self.contender.open(self.progress)
        return {**self.runner.facts, "open_seconds": time.perf_counter() - start}

    def load(self, path: Path) -> None:
        """Load the pair of an .npz file: arrays ``fixed`` and ``moving`` (I, J, K), float32 in [0, 1]."""
        with np.load(path) as arrays:
            self.images = {name: arrays[name] for name in ("fixed", "moving")}
        self.side = None

    def check(self, task: RunSettings, flow_path: Path) -> dict[str, Any]:
        """Run once to check the result: write the flow (.npy), return the rest."""
        run = solve(self._opened, task, **self.images)
        np.save(flow_path, run.flow)
        names = ("counts", "executed", "similarity", "folded_share", "seconds")
        return {name: getattr(run, name) for name in names}

    def run(self, task: RunSettings) -> dict[str, Any]:
        """Time one run from both images; plain types."""
        return self._sample(task, **self.images)

    def run_on_same_fixed(self, task: RunSettings) -> dict[str, Any]:
        """Time one run on a fixed side that is made at the first call only."""
        if self.side is None:
            runner = self._opened
            with runner.running():
                self.side = runner.fixed_side(runner.upload(self.images["fixed"]), task.similarity)
        return self._sample(task, self.images["moving"], side=self.side)

    @property
    def _opened(self) -> Runner:
        assert self.runner is not None
        return self.runner

    def _sample(self, task: RunSettings, moving: Array, **fixed: Any) -> dict[str, Any]:
        with Interference() as interference:
            run: RunResult = solve(self._opened, task, moving, **fixed)
        return {
            "seconds": run.seconds,
            "processor_seconds": interference.processor_seconds,
            "others": interference.others,
            "executed": run.executed,
            "spans": [tuple(span) for span in run.spans],
        }

    def close(self) -> None:
        """Close the runner; code that its library compiled for this machine is kept for the next one."""
        if close := getattr(self.runner, "close", None):
            close()

    def drop_fixed_side(self) -> None:
        """Release the buffers of the fixed side."""
        self.side = None

    def peak_bytes(self) -> int | None:
        """Return the peak memory of this process so far."""
        return peak_bytes()

    def gpu_memory(self) -> dict[str, int] | None:
        """Return `Runner.gpu_memory`."""
        return self._opened.gpu_memory()

    def measured_peak(self) -> float | None:
        """Return GFLOP/s that the runner's library reaches in matrix products; None if not available."""
        measure = getattr(self.runner, "measured_peak", None)
        return measure() if measure else None

    def register(self, fixed: Path, moving: Path, schedule: str) -> dict[str, Any]:
        """Time `runtime.register` on two scans that are read already: seconds by stage and in total."""
        from ....images.volume import read_volume
        from ....registration.options import Options
        from ....registration.scans import register

        assert isinstance(self.runner, EngineRunner)
        if self.volumes is None:
            self.volumes = read_volume(fixed, "--fixed"), read_volume(moving, "--moving")
        start = time.perf_counter()
        result = register(*self.volumes, self.runner.plain, Options(schedule=schedule))
        total = time.perf_counter() - start
        return {"total": total, "stages": result.seconds, "working_shape": result.transform.grid.shape}
