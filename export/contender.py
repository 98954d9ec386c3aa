"""PyTorch in the benchmark: the eager reference implementation of the loop, with the weights of an engine set.

Importing this module is cheap: torch is imported only when the contender is opened, in its own process.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from runtime.backends.engine_set import load_engine_set
from runtime.errors import InputError, NotAvailableError
from runtime.host.machine import cores
from runtime.host.progress import Progress, silent
from runtime.workflows.benchmark.contenders.contender import Others
from runtime.workflows.benchmark.contenders.timing import HostClock, Recorder

if TYPE_CHECKING:
    from runtime.loop import iterstop
    from train.model.loop import TorchPair

PACKAGES = ("torch", "onnx")
MODES = {"fp32": "fp32", "autocast": "fp16"}  # each mode and the precision of its convolutions


@dataclass(frozen=True)
class TorchContender:
    """Eager PyTorch with the network that an engine set was exported from.

    Attributes:
        engine_dir: the engine set.
        threads: number of CPU threads; None: all cores.
        device: "cpu" or "cuda".
        mode: "fp32", with TF32 off; or "autocast": convolutions in fp16 on channels-last memory, everything between
            them in fp32. In both modes cuDNN may choose its fastest convolutions.
    """

    engine_dir: Path
    threads: int | None = None
    device: str = "cpu"
    mode: str = "fp32"

    @property
    def name(self) -> str:
        return f"torch {self.mode}" if self.device == "cpu" else f"torch {self.mode} {self.device}"

    @property
    def words(self) -> str:
        place = "" if self.device == "cpu" else ", on the GPU"
        return f"the eager PyTorch reference implementation with the engine set's weights{place}"

    @property
    def missing(self) -> list[str]:
        """The required packages that are not installed."""
        return [package for package in PACKAGES if importlib.util.find_spec(package) is None]

    def require(self) -> None:
        """Check that the required packages are installed.

        Raises:
            InputError: one of them is not installed.
        """
        if self.missing:
            raise InputError(
                f"--against: torch needs {' and '.join(self.missing)}, not installed; pip install -r requirements.txt"
            )

    def open(self, progress: Progress = silent) -> "TorchRunner":
        """Load the network and return the runner that times it.

        Raises:
            NotAvailableError: a CUDA device is wanted and PyTorch sees none.
        """
        return TorchRunner(self)


def torch_others(engine_dir: Path, threads: int | None, timed: bool, on_gpu: bool) -> Others:
    """Return PyTorch as the reference and, if `timed`, also as a timed contender on the device of the engines.

    On a GPU both modes are timed. The reference is fp32 on the GPU, or on the CPU if PyTorch sees no GPU. Without
    the required packages there is neither.
    """
    on_host = TorchContender(engine_dir, threads)
    if on_host.missing:
        return Others()
    if not on_gpu:
        return Others((on_host,) if timed else (), (on_host,))
    modes = tuple(TorchContender(engine_dir, threads, "cuda", mode) for mode in MODES)
    return Others(modes if timed else (), (modes[0], on_host))


class CudaClock:
    """GPU time, measured by events in PyTorch's stream."""

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, stop: Any) -> float:
        stop.synchronize()
        return 1e-3 * start.elapsed_time(stop)


class TorchRunner:
    """The reference implementation as a `Runner` of `runtime.workflows.benchmark`, timed by the engines' stages."""

    def __init__(self, contender: TorchContender) -> None:
        import torch

        from export.from_engines import network_from_engines

        threads = contender.threads or cores()
        torch.set_num_threads(threads)
        self._device = contender.device
        if self._device == "cuda":
            _prepare_cuda()
        network: Any = network_from_engines(load_engine_set(contender.engine_dir)).to(self._device)
        autocast = contender.mode == "autocast"
        if autocast:
            network = network.to(memory_format=torch.channels_last_3d)
        self.recorder = Recorder(CudaClock() if self._device == "cuda" else HostClock())
        self._network = _TimedNetwork(network, self.recorder, self._device if autocast else None)
        self._fields = _TimedFields(self.recorder)
        self.facts = {
            "backend": "torch",
            "library": f"torch {torch.__version__}{', autocast, channels_last_3d' if autocast else ''}",
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "fields": "torch",
            "precision": MODES[contender.mode],
            "threads": threads,
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        import torch

        with torch.inference_mode():
            yield

    def upload(self, image: Any) -> Any:
        from train.model.loop import image_tensor

        return image_tensor(image, self._device)

    def fixed_side(self, fixed: Any, similarity: str) -> tuple[Any, str, dict]:
        return fixed, similarity, self._network.encode(fixed)

    def pair(self, side: tuple[Any, str, dict], moving: Any) -> tuple["iterstop.Pair", None]:
        from train.model.loop import TorchPair

        fixed, similarity, features = side
        self._moving = moving
        pair = TorchPair(self._network, self._moving, fixed, similarity, features, self._fields)
        return cast("iterstop.Pair", _TimedPair(pair, self.recorder)), None  # the other methods by `__getattr__`

    def finish(self, flow: Any) -> tuple[Any, float]:
        from train.model.fields import folded_share

        self._fields.warp(self._moving, flow).cpu().numpy()
        return flow[0].cpu().numpy(), folded_share(flow)

    def gpu_memory(self) -> dict[str, int] | None:
        import torch

        if self._device == "cpu":
            return None
        free, total = torch.cuda.mem_get_info()
        return {"peak": torch.cuda.max_memory_allocated(), "used": total - free}


def _prepare_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        raise NotAvailableError(
            f"--against: torch {torch.__version__} sees no GPU ({built}), and the engines run on one; "
            "install a PyTorch for CUDA (pytorch.org), or leave --against out"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


class _TimedPair:
    """A pair whose `score` is timed; all other methods are those of the pair, on timed networks and fields."""

    def __init__(self, pair: "TorchPair", recorder: Recorder) -> None:
        self._pair, self._recorder = pair, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pair, name)

    def score(self, level: int, flow: Any) -> float:
        return self._recorder.call("score", level, self._pair.score, level, flow)

    def warped(self, flow: Any) -> "_TimedPair":
        return _TimedPair(self._pair.warped(flow), self._recorder)


class _TimedNetwork:
    """A timed network; `autocast_on` names the device whose convolutions run in fp16 on channels-last memory."""

    def __init__(self, network: Any, recorder: Recorder, autocast_on: str | None = None) -> None:
        self._network, self._recorder, self._autocast_on = network, recorder, autocast_on

    def encode(self, image: Any) -> dict:
        return self._recorder.call("encode", None, self._encode, image)

    def estimate(self, level: int, warped_moving: Any, fixed: Any) -> Any:
        return self._recorder.call("estimator", level, self._estimate, level, warped_moving, fixed)

    def _encode(self, image: Any) -> dict:
        with self._mode():
            return {level: self._lay_out(maps) for level, maps in self._network.encode(self._lay_out(image)).items()}

    def _estimate(self, level: int, warped_moving: Any, fixed: Any) -> Any:
        with self._mode():
            return self._network.estimate(level, self._lay_out(warped_moving.to(fixed.dtype)), fixed)

    def _mode(self) -> contextlib.AbstractContextManager:
        if self._autocast_on is None:
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self._autocast_on, dtype=torch.float16)

    def _lay_out(self, tensor: Any) -> Any:
        if self._autocast_on is None:
            return tensor
        import torch

        return tensor.contiguous(memory_format=torch.channels_last_3d)


class _TimedFields:
    """The functions of `train.model.definition` with timing; tensors are (1, C, I, J, K)."""

    def __init__(self, recorder: Recorder) -> None:
        from train.model import definition as fields

        self._fields, self._recorder = fields, recorder

    def _call(self, operation: str, size: int, *arguments: Any) -> Any:
        return self._recorder.call(operation, self._recorder.level(size), getattr(self._fields, operation), *arguments)

    def warp(self, image: Any, flow: Any) -> Any:
        return self._call("warp", flow.shape[2], image, flow)

    def compose(self, flow: Any, residual: Any) -> Any:
        return self._call("compose", flow.shape[2], flow, residual)

    def upsample(self, flow: Any, scale: int) -> Any:
        return self._call("upsample", scale * flow.shape[2], flow, scale)
