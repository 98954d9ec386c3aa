"""The networks' convolutions, read from an engine set's graphs, each of which is a plain chain of a few operations."""

import itertools
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from ...errors import InputError
from ...loop.schedules import LEVELS
from ...types import Array
from ..engine_set import EXTRACTOR, EngineSet

PLAIN = {
    "Conv": {"kernel_shape": [3] * 3, "pads": [1] * 6, "strides": [1] * 3, "dilations": [1] * 3, "group": 1},
    "AveragePool": {"kernel_shape": [2] * 3, "pads": [0] * 6, "strides": [2] * 3, "dilations": [1] * 3, "ceil_mode": 0},
}
NEEDED = {"AveragePool": ("kernel_shape", "strides"), "Conv": ("pads",)}  # attributes whose defaults have other values
DEFAULT_SLOPE = 0.01  # default `alpha` of ONNX's LeakyRelu


@dataclass(frozen=True)
class Convolution:
    """A convolution: weights (C', C, 3, 3, 3), bias (C',), and the slope of the LeakyReLU after it (1: none)."""

    weights: Array
    bias: Array
    slope: float


def operations(engine_set: EngineSet, engine: str) -> list[str]:
    """Return the operations of an engine's graph, in the order in which `export` writes them."""
    if engine == EXTRACTOR:
        return ["Conv", "LeakyRelu", *["AveragePool", "Conv", "LeakyRelu"] * (len(LEVELS) - 1)]
    return [*["Conv", "LeakyRelu"] * (engine_set.convolutions - 2), "Conv", "Conv"]


def read_chain(engine_set: EngineSet, engine: str) -> list[Convolution]:
    """Return the convolutions of an engine, in order.

    Raises:
        InputError: the graph is not the chain that `export` writes for the manifest's network.
    """
    graph = onnx.load_from_string(engine_set.graph(engine)).graph
    nodes, tensors = list(graph.node), {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    expected = operations(engine_set, engine)
    chained = all(after.input[0] == before.output[0] for before, after in itertools.pairwise(nodes))
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    weighted = all(len(node.input) == 3 and set(node.input[1:]) <= set(tensors) for node in convolutions)
    if [node.op_type for node in nodes] != expected or not chained or not weighted or not all(map(_plain, nodes)):
        kinds = ", ".join(dict.fromkeys(expected))
        raise InputError(
            f"--engine-dir: {engine_set.path(engine)} is not the chain of {kinds} that `export` writes; export the set "
            "again"
        )
    found = []
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        if node.op_type == "Conv":
            active = following is not None and following.op_type == "LeakyRelu"
            slope = float(_attributes(following).get("alpha", DEFAULT_SLOPE)) if active else 1.0
            weights, bias = (tensors[name] for name in node.input[1:])
            found.append(Convolution(weights, bias, slope))
    return found


def _plain(node: onnx.NodeProto) -> bool:
    """Return whether a node's attributes are those of RP-Net's operations."""
    found, wanted = _attributes(node), PLAIN.get(node.op_type, {})
    there = all(name in found for name in NEEDED.get(node.op_type, ()))
    return there and all(found.get(name, value) == value for name, value in wanted.items())


def _attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
