"""PyTorch in the benchmark: the eager definition of the loop, on the weights of an engine set.

Importing this module costs nothing: torch is imported when the contender is opened, in its own process.
"""

import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.benchmark.timing import HostClock, Recorder
from runtime.geometry.errors import InputError
from runtime.machine import cores
from runtime.manifest import load_engine_set

if TYPE_CHECKING:
    from export.reference import TorchPair

PACKAGES = ("torch", "onnx")


@dataclass(frozen=True)
class TorchContender:
    """Eager PyTorch in fp32 on the CPU, with the network that an engine set was exported from."""

    engine_dir: Path
    threads: int | None = None
    name: str = "torch fp32"
    words: str = "the eager PyTorch definition with the engine set's weights"

    @property
    def missing(self) -> list[str]:
        """The packages it needs that are not installed."""
        return [package for package in PACKAGES if importlib.util.find_spec(package) is None]

    def require(self) -> None:
        """
        Raises:
            InputError: a package it needs is not installed.
        """
        if self.missing:
            raise InputError(
                f"--against: torch needs {' and '.join(self.missing)}, not installed; pip install -r requirements.txt"
            )

    def open(self) -> "TorchRunner":
        return TorchRunner(self.engine_dir, self.threads or cores())


class TorchRunner:
    """The definition as a `runtime.benchmark.contenders.Runner`. Stages are timed as the engines' are."""

    def __init__(self, engine_dir: Path, threads: int) -> None:
        import torch

        from export.from_engines import network_from_engines

        torch.set_num_threads(threads)
        self.recorder = Recorder(HostClock())
        self._network = _TimedNetwork(network_from_engines(load_engine_set(engine_dir)), self.recorder)
        self._fields = _TimedFields(self.recorder)
        self.facts = {
            "backend": "torch",
            "library": f"torch {torch.__version__}",
            "device": "cpu",
            "fields": "torch",
            "precision": "fp32",
            "threads": threads,
        }

    @contextlib.contextmanager
    def running(self):
        import torch

        with torch.inference_mode():
            yield

    def fixed_side(self, fixed: Any, similarity: str) -> tuple[Any, str, dict]:
        fixed = _tensor(fixed)
        return fixed, similarity, self._network.encode(fixed)

    def pair(self, side: tuple[Any, str, dict], moving: Any) -> tuple["TorchPair", None]:
        from export.reference import TorchPair

        fixed, similarity, features = side
        self._moving = _tensor(moving)
        pair = TorchPair(self._network, self._moving, fixed, similarity, features, self._fields)
        return _TimedPair(pair, self.recorder), None

    def finish(self, flow: Any) -> tuple[Any, float]:
        from train.fields import folded_share

        self._fields.warp(self._moving, flow).numpy()
        return flow[0].numpy(), folded_share(flow)


def _tensor(image: Any) -> Any:
    from export.reference import image_tensor

    return image_tensor(image)


class _TimedPair:
    """A pair whose scores are timed; what it does besides goes through timed halves."""

    def __init__(self, pair: "TorchPair", recorder: Recorder) -> None:
        self._pair, self._recorder = pair, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pair, name)

    def score(self, level: int, flow: Any) -> float:
        return self._recorder.call("score", level, self._pair.score, level, flow)

    def warped(self, flow: Any) -> "_TimedPair":
        return _TimedPair(self._pair.warped(flow), self._recorder)


class _TimedNetwork:
    def __init__(self, network: Any, recorder: Recorder) -> None:
        self._network, self._recorder = network, recorder

    def encode(self, image: Any) -> dict:
        return self._recorder.call("encode", None, self._network.encode, image)

    def estimate(self, level: int, warped_moving: Any, fixed: Any) -> Any:
        return self._recorder.call("estimator", level, self._network.estimate, level, warped_moving, fixed)


class _TimedFields:
    """The functions of `train.fields`, timed; tensors are (1, C, I, J, K)."""

    def __init__(self, recorder: Recorder) -> None:
        from train import fields

        self._fields, self._recorder = fields, recorder

    def _call(self, verb: str, size: int, *arguments: Any) -> Any:
        return self._recorder.call(verb, self._recorder.level(size), getattr(self._fields, verb), *arguments)

    def warp(self, image: Any, flow: Any) -> Any:
        return self._call("warp", flow.shape[2], image, flow)

    def compose(self, flow: Any, residual: Any) -> Any:
        return self._call("compose", flow.shape[2], flow, residual)

    def upsample(self, flow: Any, scale: int) -> Any:
        return self._call("upsample", scale * flow.shape[2], flow, scale)
