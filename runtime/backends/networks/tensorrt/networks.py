"""Engines run by TensorRT-RTX or TensorRT on a GPU, from plans opened or, if missing, built for the image size."""

import contextlib
from collections.abc import Callable
from typing import cast

import numpy as np

from ....errors import InputError, NotAvailableError
from ....loop.schedules import LEVELS
from ...cuda.device import Device
from ...cuda.gpu import GpuInfo
from ...cuda.memory import DeviceArray
from ...engine_set import (
    ENGINES,
    EXTRACTOR,
    FEATURES,
    IMAGE,
    RESIDUAL,
    EngineSet,
    estimator_name,
    features_name,
)
from .library import open_library
from .open_plan import JitCache, OpenPlan
from .plans import DTYPES, ORDINARY, PlanSpec, PlanStore, Profile, Shape, plan_specs


class _Networks:
    """Feature extractor and flow estimators, all on the device's stream. No call waits for the device.

    Args:
        engine_set: a checked set.
        device: a GPU; must be current in the calling thread, here and in every call.
        precision: "fp16" or "fp32" (without TF32); also the type of feature maps and estimator inputs.
        progress: function that prints a line before engines are built.

    Raises:
        NotAvailableError: the library is not installed, or cannot open its plans here.
        InputError: the set has no graphs of this precision, or they cannot be built.
    """

    target: str

    def __init__(self, engine_set: EngineSet, device: Device, precision: str, progress: Callable[[str], None]) -> None:
        self._library = open_library(self.target)
        self.library, self.version = self.target, self._library.version
        self.precision, self.device, self.closed = precision, device.name, False
        self._engine_set, self._gpu, self._progress, self._channels = engine_set, device, progress, engine_set.channels
        self._dtype = np.dtype(DTYPES[precision])
        self._sm = 10 * device.capability[0] + device.capability[1]
        self._check()
        self._store = PlanStore(engine_set.folder)
        self._jit = JitCache(self._library, device, precision, engine_set.graph_hash(EXTRACTOR, precision))
        self._plans: dict[str, OpenPlan] = {}
        self._drop()
        self._serve(None)

    @classmethod
    def check_gpu(cls, gpu: GpuInfo, precision: str) -> None:
        """Check, before the GPU is opened, that the library supports it in this precision.

        Raises:
            NotAvailableError: it does not, or the library is not installed.
        """
        sm = 10 * gpu.capability[0] + gpu.capability[1]
        if reason := open_library(cls.target).incompatibility(sm, precision):
            raise NotAvailableError(f"--backend: {reason} ({gpu.name})")

    def _check(self) -> None:
        self._engine_set.require(self.precision)
        odd = {level: channels for level, channels in self._channels.items() if channels % 8}
        if odd and self.precision == "fp16":
            raise InputError(
                f"--precision: {self.target} in fp16 needs channels that are multiples of 8, this network has "
                f"{odd} by level; use --precision fp32"
            )

    def features(self, image: DeviceArray) -> dict[int, DeviceArray]:
        """Return feature maps (I, J, K, C) by level of a float32 image (I, J, K) in [0, 1]: contiguous and new."""
        image = self._gpu.aligned(image)
        shape = cast(Shape, image.shape)
        self._prepare(shape)
        maps = {
            level: self._gpu.empty((*_coarser(shape, level), self._channels[level]), self._dtype) for level in LEVELS
        }
        addresses = {features_name(level): array.pointer for level, array in maps.items()}
        self._run(EXTRACTOR, 1, shape, {IMAGE: image.pointer} | addresses)
        return maps

    def estimator_input(self, level: int, shape: Shape) -> DeviceArray:
        """Return an empty contiguous (I, J, K, 2C)."""
        return self._gpu.empty((*shape, 2 * self._channels[level]), self._dtype)

    def residual(self, level: int, features: DeviceArray) -> DeviceArray:
        """Return the float32 residual flow (I, J, K, 3) of an `estimator_input`: planar, reused by the level's next."""
        size, channels = cast(Shape, features.shape[:3]), features.shape[3]
        out = self._residuals.get(level)
        if out is None or out.shape[1:] != size:
            self._residuals[level] = out = self._gpu.empty((3, *size))
        addresses = {FEATURES: features.pointer, RESIDUAL: out.pointer}
        self._run(estimator_name(level), channels, size, addresses)
        return out.moveaxis(0, -1)

    def rest(self) -> None:
        """Release memory that the next call allocates again, and save compiled kernels to disk."""
        self._drop()
        self._gpu.rest()
        self._jit.save()

    def close(self) -> None:
        if not self.closed:
            self.rest()
            self._plans.clear()
            self.closed = True

    def _drop(self) -> None:
        for plan in self._plans.values():
            plan.forget()
        self._scratch: DeviceArray | None = None
        self._residuals: dict[int, DeviceArray] = {}
        self._shape: Shape | None = None

    def _prepare(self, shape: Shape) -> None:
        """Prepare all engines for an image size, with scratch memory for the one that needs most."""
        if shape == self._shape:
            return
        self._drop()
        sizes = {EXTRACTOR: (1, shape)}
        for level in LEVELS:
            sizes[estimator_name(level)] = 2 * self._channels[level], _coarser(shape, level)
        needed = max(self._plan(name, size).resize(channels, size) for name, (channels, size) in sizes.items())
        self._reserve(needed)
        self._shape = shape

    def _reserve(self, needed: int) -> DeviceArray:
        """Provide at least `needed` bytes of scratch memory, which all engines share."""
        if self._scratch is None or self._scratch.nbytes < needed:
            self._scratch = self._gpu.empty((needed,), np.uint8)
        return self._scratch

    def _run(self, name: str, channels: int, size: Shape, addresses: dict[str, int]) -> None:
        plan = self._plan(name, size)
        scratch = self._reserve(plan.resize(channels, size))
        plan.run(addresses, (scratch.pointer, scratch.nbytes))

    def _plan(self, name: str, size: Shape) -> OpenPlan:
        """Return a plan of the engine that serves this size of its input."""
        spec = self._plans[name].spec
        if not spec.profile.at(spec.scale).holds(size):
            self._serve(cast(Shape, tuple(n * spec.scale for n in size)))
        return self._plans[name]

    def _serve(self, shape: Shape | None) -> None:
        """Open a plan of each engine that serves an image size (None: any), and build those that are missing."""
        self._plans = {name: plan for name, plan in self._plans.items() if shape and plan.spec.profile.holds(shape)}
        profile = ORDINARY if shape is None or ORDINARY.holds(shape) else Profile.only(shape)
        missing: dict[str, tuple[PlanSpec, str]] = {}
        for name, spec in self._specs(profile).items():
            if name in self._plans:
                continue
            found = self._store.find(spec, shape)
            if isinstance(found, str):
                missing[name] = spec, found
            else:
                self._open(found[1], found[0].spec)
        if missing:
            self._build(missing)

    def _build(self, missing: dict[str, tuple[PlanSpec, str]]) -> None:
        specs, reasons = [spec for spec, _ in missing.values()], {reason for _, reason in missing.values()}
        self._progress(
            f"build {len(specs)} of {len(ENGINES)} engines for {self._library.title} in {self.precision} "
            f"({'; '.join(sorted(reasons))}; {specs[0].profile})"
        )
        graphs = [self._engine_set.graph(spec.engine, self.precision) for spec in specs]
        built = [(spec, self._library.build(graph, spec)) for spec, graph in zip(specs, graphs, strict=True)]
        with contextlib.suppress(InputError):  # if no folder is writable, they are built again next time
            self._store.keep(built)
        for spec, content in built:
            self._open(content, spec)

    def _open(self, content: bytes, spec: PlanSpec) -> None:
        self._plans[spec.engine] = self._library.open(content, spec, self._gpu, self._jit)

    def _specs(self, profile: Profile) -> dict[str, PlanSpec]:
        gpu = "" if self._library.portable else self.device
        return plan_specs(self._engine_set, self.precision, self._library, (self._sm,), gpu, profile)


class TensorRtRtxNetworks(_Networks):
    """Networks on TensorRT-RTX: one plan for many GPUs, kernels compiled for this GPU when a size first comes."""

    target = "tensorrt-rtx"


class TensorRtNetworks(_Networks):
    """Networks on TensorRT: plans timed and built for this GPU."""

    target = "tensorrt"


def _coarser(shape: Shape, level: int) -> Shape:
    return tuple(n // 2 ** (level - 1) for n in shape)
