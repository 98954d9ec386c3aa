"""The network's parts as ONNX graphs: fp32, dynamic size, residual blocks folded into plain convolutions."""

import contextlib
import copy
import io
import logging
import warnings

import onnx
import torch
from torch import Tensor, nn

from runtime.manifest import EXTRACTOR, FEATURES, IMAGE, RESIDUAL, estimator_name, features_name
from train.network import LEVELS, NEGATIVE_SLOPE, SIZE_MULTIPLE, FlowEstimator, RPNet

OPSET = 20
AXES = ("I", "J", "K")


class FoldedEstimator(nn.Module):
    """A `FlowEstimator` whose residual blocks are plain convolutions: ``x + conv(x)`` is a convolution itself.

    Adding 1 to the centre tap from every channel to itself is exact up to rounding, and spares reading x once more.
    """

    def __init__(self, estimator: FlowEstimator) -> None:
        super().__init__()
        self.activated = nn.ModuleList([estimator.entry, *(_with_identity(block) for block in estimator.blocks)])
        self.linear = nn.Sequential(estimator.narrow, estimator.flow)

    def forward(self, features: Tensor) -> Tensor:
        for convolution in self.activated:
            features = nn.functional.leaky_relu(convolution(features), NEGATIVE_SLOPE)
        return self.linear(features)


def _with_identity(block: nn.Conv3d) -> nn.Conv3d:
    folded = copy.deepcopy(block)
    with torch.no_grad():
        channel = torch.arange(block.out_channels)
        folded.weight[channel, channel, 1, 1, 1] += 1
    return folded


def export_graphs(network: RPNet) -> dict[str, bytes]:
    """The feature extractor and the four estimators as checked ONNX models, by engine name.

    The extractor maps ``image`` (1, 1, I, J, K), sizes multiples of 8, to ``features_level1`` .. ``4``; an estimator
    maps ``features`` (1, 2C, I, J, K), warped moving then fixed, of any size, to ``residual`` (1, 3, I, J, K).
    """
    network = network.eval().float().cpu()
    image = torch.zeros(1, 1, 2 * SIZE_MULTIPLE, 3 * SIZE_MULTIPLE, 4 * SIZE_MULTIPLE)
    outputs = [features_name(level) for level in sorted(LEVELS)]
    sizes = [SIZE_MULTIPLE * torch.export.Dim(f"{axis}8", min=1) for axis in AXES]
    graphs = {EXTRACTOR: _export(network.extractor, image, IMAGE, outputs, sizes)}
    for level in LEVELS:
        features = torch.zeros(1, 2 * network.config.feature_channels[level], 6, 7, 8)
        sizes = [torch.export.Dim(axis, min=1) for axis in AXES]
        estimator = FoldedEstimator(network.estimators[str(level)]).eval()
        graphs[estimator_name(level)] = _export(estimator, features, FEATURES, [RESIDUAL], sizes)
    return graphs


def _export(module: nn.Module, example: Tensor, input_name: str, output_names: list[str], sizes: list) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=output_names,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({2: sizes[0], 3: sizes[1], 4: sizes[2]},),
            verbose=False,
        )
    model = program.model_proto
    _strip_build_traces(model)
    _name_axes(model.graph)
    _check(model, input_name, output_names)
    return model.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet():
    """The exporter's progress lines and deprecation notices are not for our users."""
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
    """Stack traces and file names of the exporting machine do not belong in a published graph."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_axes(graph: onnx.GraphProto) -> None:
    """Gives a feature map's axes names that follow from the image's (8*I8 is I8 at level 4), not arbitrary symbols."""
    scales = {features_name(level): 2 ** (level - 1) for level in LEVELS}
    for output in graph.output:
        if output.name in scales:
            factor = SIZE_MULTIPLE // scales[output.name]
            for axis, dimension in zip(AXES, output.type.tensor_type.shape.dim[2:], strict=True):
                dimension.dim_param = f"{factor}*{axis}8" if factor > 1 else f"{axis}8"
    del graph.value_info[:]


def _check(model: onnx.ModelProto, input_name: str, output_names: list[str]) -> None:
    """The ONNX checker, and that every declared input and output is the one meant, used, and dynamic in size."""
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    if [value.name for value in graph.input] != [input_name] or input_name not in used:
        raise RuntimeError(f"exported graph takes {[value.name for value in graph.input]}, expected [{input_name!r}]")
    if [value.name for value in graph.output] != output_names:
        raise RuntimeError(f"exported graph gives {[v.name for v in graph.output]}, expected {output_names}")
    dimensions = graph.input[0].type.tensor_type.shape.dim[2:]
    if not all(dimension.dim_param for dimension in dimensions):
        raise RuntimeError("exported graph has fixed sizes, expected dynamic ones")
