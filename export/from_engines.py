"""From an engine set back to the network it was exported from: the graphs hold every weight."""

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from export.graphs import FoldedEstimator
from runtime.geometry.errors import InputError
from runtime.manifest import EXTRACTOR, EngineSet, estimator_name
from train.network import LEVELS, NEGATIVE_SLOPE, FlowEstimator, NetworkConfig, RPNet

CONVOLUTION = {
    "kernel_shape": [3, 3, 3],
    "pads": [1] * 6,
    "strides": [1] * 3,
    "dilations": [1] * 3,
    "group": 1,
}
Convolutions = list[tuple[Tensor, Tensor]]


def network_from_engines(engine_set: EngineSet) -> RPNet:
    """The network whose export an engine set is, in eager PyTorch, ready for inference.

    What the export folded is taken apart again: 1 comes off the centre taps of the residual blocks. Folding the
    result once more must give the graphs' weights bit for bit, so it is the network that the engines run.

    Raises:
        InputError: the graphs are not those of the network that the manifest describes.
    """
    facts = engine_set.manifest["network"]
    network = RPNet(NetworkConfig(facts["first_channels"], facts["res_blocks"])).eval()
    with torch.no_grad():
        operations = ["Conv", "LeakyRelu", *["AveragePool", "Conv", "LeakyRelu"] * 3]
        _copy(network.extractor.convolutions, _convolutions(engine_set, EXTRACTOR, operations))
        for level in LEVELS:
            operations = [*["Conv", "LeakyRelu"] * (1 + network.config.res_blocks), "Conv", "Conv"]
            convolutions = _convolutions(engine_set, estimator_name(level), operations)
            _unfold(network.estimators[str(level)], convolutions, engine_set)
    return network


def _unfold(estimator: FlowEstimator, convolutions: Convolutions, engine_set: EngineSet) -> None:
    """Gives an estimator the weights of its folded form."""
    _copy([estimator.entry, *estimator.blocks, estimator.narrow, estimator.flow], convolutions)
    for block in estimator.blocks:
        channel = torch.arange(block.out_channels)
        block.weight[channel, channel, 1, 1, 1] -= 1
    folded = FoldedEstimator(estimator)
    for again, (weight, bias) in zip((*folded.activated, *folded.linear), convolutions, strict=True):
        if not (torch.equal(again.weight, weight) and torch.equal(again.bias, bias)):
            raise _foreign(engine_set, "its residual blocks cannot be taken apart exactly")


def _copy(modules: list, convolutions: Convolutions) -> None:
    for module, (weight, bias) in zip(modules, convolutions, strict=True):
        if weight.shape != module.weight.shape or bias.shape != module.bias.shape:
            raise InputError(
                f"--engine-dir: a graph has a convolution of shape {tuple(weight.shape)}, the manifest's network "
                f"{tuple(module.weight.shape)}; export the set again"
            )
        module.weight.copy_(weight)
        module.bias.copy_(bias)


def _convolutions(engine_set: EngineSet, engine: str, operations: list[str]) -> Convolutions:
    """Weights and biases of a graph's convolutions in order, once its operations are those expected."""
    graph = onnx.load(engine_set.path(engine)).graph
    if [node.op_type for node in graph.node] != operations or not all(map(_plain, graph.node)):
        raise _foreign(engine_set, f"{engine} is no chain of {', '.join(dict.fromkeys(operations))} as exported here")
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    return [tuple(tensors[name] for name in node.input[1:]) for node in graph.node if node.op_type == "Conv"]


def _plain(node: onnx.NodeProto) -> bool:
    """Whether a node's attributes are those of the definition."""
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return all(found.get(name, value) == value for name, value in CONVOLUTION.items())
    if node.op_type == "LeakyRelu":
        return abs(found.get("alpha", 0.01) - NEGATIVE_SLOPE) < 1e-7
    return found["kernel_shape"] == found["strides"] == [2, 2, 2]


def _foreign(engine_set: EngineSet, what: str) -> InputError:
    return InputError(f"--engine-dir: {engine_set.folder}: {what}; export the set again")
