"""Numerics of a run: device, precision, memory layout and compilation."""

from dataclasses import dataclass

import torch

from runtime.errors import InputError, first_line
from train.model.network import RPNet
from train.options import FitOptions

# oneDNN reads uninitialised memory for bf16 weight gradients of maps with two slices along I (torch 2.13).
SMALLEST_BF16 = 24
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Numerics:
    """The numerics chosen for a run.

    Attributes:
        device: the device that trains.
        precision: "fp32", or autocast to "bf16" or "fp16".
        channels_last: whether weights and features are in channels-last memory.
        compiled: whether the convolutions are compiled by torch.compile.
    """

    device: torch.device
    precision: str
    channels_last: bool
    compiled: bool

    def chosen(self) -> dict[str, str]:
        """Return the choices as the values of the options that ask for them."""
        layout = "on" if self.channels_last else "off"
        return {"device": self.device.type, "precision": self.precision, "channels_last": layout}

    def autocast(self) -> torch.autocast:
        kind = _TYPES.get(self.precision)
        return torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a scaler that keeps fp16 gradients in range; it is disabled in other precisions, which need none."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, network: RPNet) -> RPNet:
        network.to(self.device)
        if not self.channels_last:
            return network
        return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in its stub

    def compile(self, network: RPNet) -> None:
        """Compile extractor and estimators in place, if asked for; the names of weights do not change."""
        if self.compiled:
            for part in (network.extractor, *network.estimators.values()):
                part.compile(dynamic=False)


def choose_device(options: FitOptions, local_rank: int = 0) -> torch.device:
    """Return the GPU of number `local_rank` if a GPU is allowed and available, else the CPU.

    Raises:
        InputError: CUDA is required but not available.
    """
    here = torch.cuda.is_available()
    if options.device == "cuda" and not here:
        raise InputError("device: got cuda, but torch sees no CUDA device; use cpu or auto")
    return torch.device("cuda", local_rank) if options.device != "cpu" and here else torch.device("cpu")


def choose_numerics(options: FitOptions, device: torch.device, smallest: int) -> Numerics:
    """Choose the numerics that `options` ask for or that suit the device.

    Args:
        options: options of the run.
        device: the device that trains.
        smallest: smallest edge of the training images, voxels.

    Raises:
        InputError: the device or the image size does not support the precision, or there is no compiler to use.
    """
    precision = _precision(options, device, smallest)
    layout = {"auto": precision != "fp32", "on": True, "off": False}[options.channels_last]
    if options.compile:
        _require_compiler(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return Numerics(device, precision, layout, options.compile)


def _precision(options: FitOptions, device: torch.device, smallest: int) -> str:
    chosen, on_gpu = options.precision, device.type == "cuda"
    if chosen == "fp16" and not on_gpu:
        raise InputError("precision: fp16 needs a CUDA device, got cpu; use bf16, fp32 or auto")
    large = on_gpu or smallest >= SMALLEST_BF16
    if chosen == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _computes_bf16()
        return "bf16" if fast and large else "fp32"
    if chosen == "bf16" and not large:
        raise InputError(
            f"precision: bf16 needs sizes >= {SMALLEST_BF16} on a CPU, the smallest is {smallest}; use fp32"
        )
    return chosen


def _computes_bf16() -> bool:
    """Return whether this processor has bf16 instructions; without them, bf16 is emulated and slower than fp32."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


def _require_compiler(device: torch.device) -> None:
    """Compile a small function, to find out before the first step if torch.compile works."""
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.zeros(64, device=device))
    except Exception as error:
        raise InputError(f"compile: torch.compile does not work here ({first_line(error)[:160]}); install a C++ "
                         "compiler (for GPUs Triton), or leave compile out") from error  # fmt: skip
