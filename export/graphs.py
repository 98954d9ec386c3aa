"""The network's parts as ONNX graphs in fp32 and fp16: dynamic sizes, residual blocks folded into convolutions."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import onnx
import onnx.utils
import torch
from onnx import TensorProto
from torch import Tensor, nn

from runtime.backends.engine_set import EXTRACTOR, FEATURES, IMAGE, RESIDUAL, estimator_name, features_name
from runtime.errors import InputError
from runtime.geometry.grid import SIZE_MULTIPLE
from train.model.network import LEVELS, NEGATIVE_SLOPE, FeatureExtractor, FlowEstimator, RPNet

OPSET = 20
AXES = ("I", "J", "K")
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
# Rounding to 11 bits changes the norm of a convolution's weights by at most 2^-11 of it. A larger change means that
# they overflow (above 65504) or lie where fp16 has fewer bits (below 6e-5).
LARGEST_ROUNDING = 2**-10


@dataclass(frozen=True)
class Ends:
    """Input and outputs of a graph.

    Attributes:
        takes: name and ONNX element type of the input.
        gives: the same of each output.
        convolutions: ONNX element type of all convolutions.
    """

    takes: tuple[str, int]
    gives: tuple[tuple[str, int], ...]
    convolutions: int


class FoldedEstimator(nn.Module):
    """A `FlowEstimator` whose residual blocks are plain convolutions: ``x + conv(x)`` is a convolution itself.

    Adding 1 to the centre tap from every channel to itself is exact up to rounding, and avoids reading x a second time.
    """

    def __init__(self, estimator: FlowEstimator) -> None:
        super().__init__()
        blocks = cast(Iterable[nn.Conv3d], estimator.blocks)
        self.activated = nn.ModuleList([estimator.entry, *(_with_identity(block) for block in blocks)])
        self.linear = nn.Sequential(estimator.narrow, estimator.flow)

    def forward(self, features: Tensor) -> Tensor:
        for convolution in self.activated:
            features = nn.functional.leaky_relu(convolution(features), NEGATIVE_SLOPE)
        return self.linear(features)


class HalfExtractor(nn.Module):
    """A `FeatureExtractor` that computes in fp16: image in float32, feature maps out in float16."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = _half(extractor, EXTRACTOR)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.extractor(image.half())


class HalfEstimator(nn.Module):
    """A `FoldedEstimator` that computes in fp16: features in float16, residual flow out in float32."""

    def __init__(self, estimator: FoldedEstimator, name: str) -> None:
        super().__init__()
        self.estimator = _half(estimator, name)

    def forward(self, features: Tensor) -> Tensor:
        return self.estimator(features).float()


def _half(module: nn.Module, name: str) -> nn.Module:
    """Return a copy in fp16.

    Raises:
        InputError: fp16 cannot hold the weights.
    """
    half = copy.deepcopy(module).half()
    for (place, before), after in zip(module.named_parameters(), half.parameters(), strict=True):
        exact, rounded = before.detach().double(), after.detach().double()
        # A bias below the resolution of fp16, 6e-8, is negligible beside its convolution's products.
        lost = (rounded - exact).norm() > LARGEST_ROUNDING * exact.norm() and exact.ndim > 1
        if lost or not rounded.isfinite().all():
            raise InputError(
                f"--checkpoint: fp16, with its range of 6e-5 to 65504, cannot hold {place} of {name}, at most "
                f"{float(exact.abs().max()):.3g}; export with --no-fp16"
            )
    return half


def _with_identity(block: nn.Conv3d) -> nn.Conv3d:
    folded = copy.deepcopy(block)
    with torch.no_grad():
        channel = torch.arange(block.out_channels)
        folded.weight[channel, channel, 1, 1, 1] += 1
    return folded


def export_graphs(network: RPNet, precision: str = "fp32") -> dict[str, bytes]:
    """Return the feature extractor and the four estimators as checked, serialised ONNX models by engine name.

    The extractor maps ``image`` (1, 1, I, J, K), sizes multiples of 8, to ``features_level1`` .. ``4``; an estimator
    maps ``features`` (1, 2C, I, J, K), warped moving then fixed, of any size, to ``residual`` (1, 3, I, J, K).

    Args:
        network: the network to export.
        precision: "fp32", or "fp16": image and residual stay float32, feature maps and all else are float16.

    Raises:
        InputError: fp16 cannot hold the weights.
    """
    network, kind, half = network.eval().float().cpu(), TYPES[precision], precision == "fp16"
    maps = tuple((features_name(level), kind) for level in sorted(LEVELS))
    parts: dict[str, nn.Module] = {EXTRACTOR: HalfExtractor(network.extractor) if half else network.extractor}
    ends = {EXTRACTOR: Ends((IMAGE, TensorProto.FLOAT), maps, kind)}
    for level in LEVELS:
        name = estimator_name(level)
        estimator = FoldedEstimator(cast(FlowEstimator, network.estimators[str(level)])).eval()
        parts[name] = HalfEstimator(estimator, name) if half else estimator
        ends[name] = Ends((FEATURES, kind), ((RESIDUAL, TensorProto.FLOAT),), kind)
    channels = [2 * network.config.feature_channels[level] for level in LEVELS]
    whole = onnx.utils.Extractor(_export(Parts(parts), channels, half, ends))
    return {name: _cut_out(whole, name, found) for name, found in ends.items()}


class Parts(nn.Module):
    """All engines side by side as one module: an export of one takes half as long as exports of five."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, image: Tensor, features: list[Tensor]) -> tuple[Tensor, ...]:
        extractor, *estimators = self.parts.values()
        return (*extractor(image), *(part(taken) for part, taken in zip(estimators, features, strict=True)))


def _export(parts: Parts, channels: list[int], half: bool, ends: dict[str, Ends]) -> onnx.ModelProto:
    """Return one graph of all engines. Each has an input, outputs and axes of its own, named ``ENGINE.NAME``."""
    image = torch.zeros(1, 1, 2 * SIZE_MULTIPLE, 3 * SIZE_MULTIPLE, 4 * SIZE_MULTIPLE)
    kind = torch.float16 if half else torch.float32
    features = [torch.zeros(1, count, 6, 7, 8, dtype=kind) for count in channels]
    multiples = [SIZE_MULTIPLE * torch.export.Dim(f"{axis}8", min=1) for axis in AXES]
    sizes = [[torch.export.Dim(f"{axis}_{level}", min=1) for axis in AXES] for level in LEVELS]
    with _quiet():
        program = torch.onnx.export(
            parts,
            (image, features),
            input_names=[_within(engine, end.takes[0]) for engine, end in ends.items()],
            output_names=[_within(engine, name) for engine, end in ends.items() for name, _ in end.gives],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=(dict(enumerate(multiples, 2)), [dict(enumerate(size, 2)) for size in sizes]),
            verbose=False,
        )
    assert program is not None  # as always with dynamo=True
    return program.model_proto


def _within(engine: str, name: str) -> str:
    return f"{engine}.{name}"


def _cut_out(whole: onnx.utils.Extractor, engine: str, ends: Ends) -> bytes:
    """Return one engine's graph, checked."""
    takes, gives = _within(engine, ends.takes[0]), [_within(engine, name) for name, _ in ends.gives]
    model = whole.extract_model([takes], gives)
    model.producer_name, model.producer_version = whole.model.producer_name, whole.model.producer_version
    model.graph.name = whole.model.graph.name
    _strip_build_traces(model)
    _strip_names(model.graph, engine)
    _name_axes(model.graph)
    check_graph(model, ends)
    return model.SerializeToString(deterministic=True)


def _strip_names(graph: onnx.GraphProto, engine: str) -> None:
    """Remove the engine's name from those of its input, outputs and weights."""

    def plain(name: str) -> str:
        return name.removeprefix(f"parts.{engine}.").removeprefix(f"{engine}.")

    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = plain(value.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [plain(name) for name in ends]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and deprecation notices, which do not concern our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip_build_traces(model: onnx.ModelProto) -> None:
    """Remove stack traces and file names of the exporting machine, which do not belong in a published graph."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_axes(graph: onnx.GraphProto) -> None:
    """Name the axes of feature maps after those of the image (its 8*I8 is I8 at level 4), and all estimators' alike."""
    scales = {features_name(level): 2 ** (level - 1) for level in LEVELS}
    plain = {f"{axis}_{level}": axis for axis in AXES for level in LEVELS}
    for value in (*graph.input, *graph.output):
        for axis, dimension in zip(AXES, value.type.tensor_type.shape.dim[2:], strict=True):
            if value.name in scales:
                factor = SIZE_MULTIPLE // scales[value.name]
                dimension.dim_param = f"{factor}*{axis}8" if factor > 1 else f"{axis}8"
            elif dimension.dim_param in plain:
                dimension.dim_param = plain[dimension.dim_param]
    del graph.value_info[:]


def check_graph(model: onnx.ModelProto, ends: Ends) -> None:
    """Check a graph with the ONNX checker, then against `ends`.

    Names and types of input and outputs must be those of `ends`, the input must be used and have dynamic sizes, and all
    convolutions must be of the given type.

    Raises:
        RuntimeError: the graph differs from `ends`.
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    takes, gives = _ends(graph.input), _ends(graph.output)
    if takes != (ends.takes,) or ends.takes[0] not in {name for node in graph.node for name in node.input}:
        raise RuntimeError(f"exported graph takes {takes}, expected {ends.takes}, used by a node")
    if gives != ends.gives:
        raise RuntimeError(f"exported graph gives {gives}, expected {ends.gives}")
    if not all(dimension.dim_param for dimension in graph.input[0].type.tensor_type.shape.dim[2:]):
        raise RuntimeError("exported graph has fixed sizes, expected dynamic ones")
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    # The checker has verified that a convolution's input has the type of its weights.
    if {kinds.get(name) for node in convolutions for name in node.input[1:]} != {ends.convolutions}:
        raise RuntimeError(f"exported graph has convolutions of another type than {ends.convolutions}")


def _ends(values: list[onnx.ValueInfoProto]) -> tuple[tuple[str, int], ...]:
    return tuple((value.name, value.type.tensor_type.elem_type) for value in values)
