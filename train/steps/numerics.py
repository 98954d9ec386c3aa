"""How a run computes: on which device, in which precision and memory layout, compiled or not."""

from dataclasses import dataclass

import torch

from runtime.errors import InputError, first_line
from train.model.network import RPNet
from train.options import FitOptions

# oneDNN reads memory that it never wrote for bf16 weight gradients of maps with two slices along I (torch 2.13).
SMALLEST_BF16 = 24
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Numerics:
    """What was chosen. precision: "fp32", or autocast to "bf16" or "fp16"; channels_last: of weights and features."""

    device: torch.device
    precision: str
    channels_last: bool
    compiled: bool

    def chosen(self) -> dict[str, str]:
        """What was chosen, as the options that ask for it."""
        layout = "on" if self.channels_last else "off"
        return {"device": self.device.type, "precision": self.precision, "channels_last": layout}

    def autocast(self) -> torch.autocast:
        kind = _TYPES.get(self.precision)
        return torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients in range; does nothing in the other precisions, whose range is float32's."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, network: RPNet) -> RPNet:
        network.to(self.device)
        return network.to(memory_format=torch.channels_last_3d) if self.channels_last else network

    def compile(self, network: RPNet) -> None:
        """The parts that are convolutions, in place; names of weights stay what they were."""
        if self.compiled:
            for part in (network.extractor, *network.estimators.values()):
                part.compile(dynamic=False)


def choose_device(options: FitOptions, local_rank: int = 0) -> torch.device:
    """The GPU of this process's number on its computer, where one may and can be used, else the CPU.

    Raises:
        InputError: CUDA is asked for and absent.
    """
    here = torch.cuda.is_available()
    if options.device == "cuda" and not here:
        raise InputError("device: got cuda, but torch sees no CUDA device; use cpu or auto")
    return torch.device("cuda", local_rank) if options.device != "cpu" and here else torch.device("cpu")


def choose_numerics(options: FitOptions, device: torch.device, smallest: int) -> Numerics:
    """What `options` ask for, or what suits the device; `smallest` is the smallest edge of an image trained on.

    Raises:
        InputError: a precision this device or size does not allow, or no compiler where one is asked for.
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
    """Whether this processor has bf16 instructions; elsewhere bf16 is emulated and slower than fp32."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


def _require_compiler(device: torch.device) -> None:
    """torch.compile finds out late what it lacks; something small shows it before the first step."""
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.zeros(64, device=device))
    except Exception as error:
        raise InputError(f"compile: torch.compile does not work here ({first_line(error)[:160]}); install a C++ "
                         "compiler (for GPUs Triton), or leave compile out") from error  # fmt: skip
