"""The parity gate: an engine set is published only if its results equal those of the PyTorch network."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from runtime.backends.engines import OpenEngines
from runtime.backends.parity import TOLERANCES, Tolerance, flow_difference
from runtime.errors import InputError
from runtime.geometry.grid import SIZE_MULTIPLE
from runtime.loop.schedules import Schedule
from runtime.loop.stop_rules import ON_STOP, iterstop_schedule, parse_schedule
from runtime.registration.arrays import register_arrays
from runtime.types import Array, Shape
from train.model.loop import register_with_torch
from train.model.network import LEVELS, RPNet

GATE_SCHEDULES = ("1,1,1,1", "1,2,2,2", "cascade:2")
GATE_ON_STOP = ON_STOP


class ParityError(InputError):
    """A failed parity gate; nothing was published."""


@dataclass(frozen=True)
class GateTolerance:
    """The tolerances of the gate for one precision.

    Attributes:
        graph: largest difference of a graph's output, relative to its largest value.
        flow: tolerance for the flow of a whole registration.
    """

    graph: float
    flow: Tolerance

    def as_dict(self) -> dict[str, Any]:
        return {"graph": self.graph, **asdict(self.flow)}


# fp32 graphs: other orders of summation differ by up to 3e-6. fp16 graphs: an image or features go through about ten
# roundings (features, weights and results of five convolutions, activations), each of at most 2^-11: 5e-3 if all of
# them added up, 1.5e-3 observed. The limit holds for the largest difference of any voxel, so bf16's 8 bits do not pass.
# fp16 flows: see TOLERANCES. Single voxels are not limited: where a flow folds or leaves the image, a rounding decides
# between voxels far apart (4.8 voxel observed on a real pair, at a mean of 0.004). The graphs are limited everywhere.
GATE_TOLERANCES = {
    "fp32": GateTolerance(graph=1e-3, flow=TOLERANCES["fp32"]),
    "fp16": GateTolerance(graph=5e-3, flow=TOLERANCES["fp16"]),
}


@dataclass(frozen=True)
class GraphParity:
    """The largest difference of one engine output from the network's, relative to the latter's largest value."""

    output: str
    difference: float


@dataclass(frozen=True)
class LoopParity:
    """One whole registration compared with the PyTorch reference implementation.

    Attributes:
        schedule: name of the schedule.
        largest, mean: length of the difference of the flows, voxels.
        counts, expected_counts: iterations per level (a, b, c, d) of each pass, of the engines and of the reference.
        similarity, expected_similarity: final similarity, of the engines and of the reference.
    """

    schedule: str
    largest: float
    mean: float
    counts: tuple
    expected_counts: tuple
    similarity: float
    expected_similarity: float

    def refusal(self, tolerance: Tolerance) -> str | None:
        """Return the reason why it does not pass, or None if it does."""
        row = {
            "voxels": {"max": self.largest, "mean": self.mean},
            "counts": _text(self.counts),
            "expected_counts": _text(self.expected_counts),
            "counts_equal": self.counts == self.expected_counts,
        }
        return tolerance.refusal(row)


@dataclass(frozen=True)
class Parity:
    """The measurements of the gate for one precision."""

    precision: str
    shape: tuple[int, int, int]
    images: str
    graphs: tuple[GraphParity, ...]
    loops: tuple[LoopParity, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"tolerance": GATE_TOLERANCES[self.precision].as_dict(), **asdict(self)}


def check_parity(
    network: RPNet,
    engines: OpenEngines,
    pair: tuple[Array, Array],
    images: str,
    echo: Callable[[str], None] = lambda line: None,
) -> Parity:
    """Compare each graph with the network, then whole registrations (fixed counts, cascade, IterStop) of a pair.

    Args:
        network: the exported network.
        engines: the exported graphs, opened as users will open them.
        pair: fixed and moving (I, J, K), float32 in [0, 1], sizes multiples of 8.
        images: description of the pair, for the record.
        echo: called with one line per comparison.

    Raises:
        ParityError: a difference exceeds its tolerance, or iteration counts differ.
    """
    fixed, moving = pair
    tolerance = GATE_TOLERANCES[engines.precision]
    graphs = tuple(_graph_parities(network, engines))
    # NaN compares false with everything, so max over the difference alone could skip it.
    worst = max(graphs, key=lambda graph: (np.isnan(graph.difference), graph.difference))
    echo(f"graphs: largest relative difference {worst.difference:.1e} ({worst.output})")
    if not worst.difference <= tolerance.graph:
        raise _refused(
            engines, f"{worst.output} differs by {worst.difference:.2e} of its range, allowed {tolerance.graph:g}"
        )
    loops = []
    for name, schedule in _gate_schedules(engines):
        loops.append(_loop_parity(name, network, engines, fixed, moving, schedule))
        loop = loops[-1]
        echo(f"{name}: flow within {loop.largest:.1e} voxel (mean {loop.mean:.1e}), iterations {_counts(loop)}")
        if reason := loop.refusal(tolerance.flow):
            raise _refused(engines, f"{name}: {reason}")
    return Parity(engines.precision, fixed.shape, images, graphs, tuple(loops))


def _refused(engines: OpenEngines, reason: str) -> ParityError:
    remedy = "" if engines.precision == "fp32" else "; fp32 alone can be exported with --no-fp16"
    return ParityError(f"parity: {engines.precision}: {reason}; nothing was published{remedy}")


def _gate_schedules(engines: OpenEngines) -> Iterator[tuple[str, Schedule]]:
    """Yield the schedules of the gate, each with its name."""
    for text in GATE_SCHEDULES:
        yield text, parse_schedule(text)
    stop = engines.engine_set.stop
    for on_stop in GATE_ON_STOP:
        options = {"similarity": stop["similarity"], "delta": stop["delta"], "limit": stop["limit"]}
        yield f"iterstop {on_stop}", iterstop_schedule(on_stop=on_stop, **options)


def _loop_parity(
    name: str, network: RPNet, engines: OpenEngines, fixed: Array, moving: Array, schedule: Schedule
) -> LoopParity:
    similarity = engines.engine_set.stop["similarity"]
    expected = register_with_torch(network, fixed, moving, schedule, similarity)
    found = register_arrays(engines, fixed, moving, schedule, similarity)
    difference = flow_difference(found.flow, expected.flow)
    return LoopParity(
        name,
        largest=difference["max"],
        mean=difference["mean"],
        counts=found.counts,
        expected_counts=expected.counts,
        similarity=found.similarity,
        expected_similarity=expected.similarity,
    )


def _graph_parities(network: RPNet, engines: OpenEngines) -> Iterator[GraphParity]:
    """Compare every graph with the network on two image sizes, so that a graph with a fixed size cannot pass."""
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3):
        shape: Shape = (SIZE_MULTIPLE * n, SIZE_MULTIPLE * (n + 1), SIZE_MULTIPLE * (n + 2))
        image = torch.rand((1, 1, *shape), generator=generator)
        with torch.inference_mode():
            expected = {level: _channels_last(f) for level, f in network.encode(image).items()}
            for level, features in engines.networks.features(image[0, 0].numpy()).items():
                yield GraphParity(f"features of level {level}", _relative(features, expected[level]))
            for level in LEVELS:
                channels = network.config.feature_channels[level]
                features = torch.rand((1, 2 * channels, *shape), generator=generator)
                residual = _channels_last(network.estimate(level, *features.split(channels, dim=1)))
                buffer = engines.networks.estimator_input(level, shape)
                buffer[...] = _channels_last(features)
                found = engines.networks.residual(level, buffer)
                yield GraphParity(f"residual of level {level}", _relative(found, residual))


def _channels_last(tensor: torch.Tensor) -> Array:
    """Return a tensor (1, C, I, J, K) as an array (I, J, K, C)."""
    return np.moveaxis(tensor[0].numpy(), 0, -1)


def _relative(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        raise ParityError(f"parity: got shape {found.shape} from an engine, expected {expected.shape}")
    return float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-6))


def _counts(loop: LoopParity) -> str:
    expected = "" if loop.counts == loop.expected_counts else f", of the reference {_text(loop.expected_counts)}"
    return f"{_text(loop.counts)}{expected}"


def _text(counts: tuple) -> str:
    return " + ".join(str(tuple(passed)) for passed in counts)
