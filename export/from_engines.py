"""Recovery of the network from an engine set that was exported from it: the graphs hold every weight.

    python -m export.from_engines --engine-dir engines --output runs/shipped.pt

writes that network as a checkpoint for `train --start`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor, nn

from export.graphs import FoldedEstimator
from runtime.backends.engine_set import EXTRACTOR, EngineSet, estimator_name, load_engine_set
from runtime.backends.networks.graph_weights import read_chain
from runtime.commands.terminal import one_line_errors
from runtime.errors import InputError
from train.model.checkpoint import Checkpoint, save_checkpoint
from train.model.network import LEVELS, NEGATIVE_SLOPE, FlowEstimator, NetworkConfig, RPNet

Convolutions = list[tuple[Tensor, Tensor]]


def network_from_engines(engine_set: EngineSet) -> RPNet:
    """Return the network that an engine set was exported from, in eager PyTorch, ready for inference.

    The folding of the export is undone: 1 is subtracted from the centre taps of the residual blocks. Folding the
    result again must reproduce the graphs' weights bit for bit, which proves that it is the network of the engines.

    Raises:
        InputError: the graphs do not belong to the network that the manifest describes.
    """
    facts = engine_set.manifest["network"]
    network = RPNet(NetworkConfig(facts["first_channels"], facts["res_blocks"])).eval()
    with torch.no_grad():
        _copy(network.extractor.convolutions, _convolutions(engine_set, EXTRACTOR))
        for level in LEVELS:
            estimator = cast(FlowEstimator, network.estimators[str(level)])
            _unfold(estimator, _convolutions(engine_set, estimator_name(level)), engine_set)
    return network


def _unfold(estimator: FlowEstimator, convolutions: Convolutions, engine_set: EngineSet) -> None:
    """Set an estimator's weights from the convolutions of its folded form."""
    _copy([estimator.entry, *estimator.blocks, estimator.narrow, estimator.flow], convolutions)
    for block in cast(Iterable[nn.Conv3d], estimator.blocks):
        channel = torch.arange(block.out_channels)
        block.weight[channel, channel, 1, 1, 1] -= 1
    folded = FoldedEstimator(estimator)
    for again, (weight, bias) in zip((*folded.activated, *folded.linear), convolutions, strict=True):
        if not (torch.equal(again.weight, weight) and torch.equal(again.bias, bias)):
            raise _foreign(engine_set, "its residual blocks cannot be taken apart exactly")


def _copy(modules: Iterable[Any], convolutions: Convolutions) -> None:
    for module, (weight, bias) in zip(modules, convolutions, strict=True):
        if weight.shape != module.weight.shape or bias.shape != module.bias.shape:
            raise InputError(
                f"--engine-dir: got a graph with a convolution of shape {tuple(weight.shape)}, expected "
                f"{tuple(module.weight.shape)} by the manifest; export the set again"
            )
        module.weight.copy_(weight)
        module.bias.copy_(bias)


def _convolutions(engine_set: EngineSet, engine: str) -> Convolutions:
    """Return the weights and biases of a graph's convolutions, in order."""
    found = read_chain(engine_set, engine)
    if any(abs(convolution.slope - NEGATIVE_SLOPE) > 1e-7 for convolution in found if convolution.slope != 1):
        raise _foreign(engine_set, f"{engine} has a LeakyReLU of another slope than {NEGATIVE_SLOPE}")
    return [(torch.from_numpy(each.weights.copy()), torch.from_numpy(each.bias.copy())) for each in found]


def _foreign(engine_set: EngineSet, what: str) -> InputError:
    return InputError(f"--engine-dir: {engine_set.folder}: {what}; export the set again")


def write_checkpoint(engine_dir: Path, output: Path) -> None:
    """Write the network of an engine set as a checkpoint, with the set's provenance."""
    engine_set = load_engine_set(engine_dir)
    network = network_from_engines(engine_set)
    output.parent.mkdir(parents=True, exist_ok=True)
    provenance = engine_set.manifest.get("provenance", {})
    save_checkpoint(output, Checkpoint(network.config, network.state_dict(), provenance))


@click.command(help="Write the network of an engine set as a checkpoint.")
@click.option("--engine-dir", type=click.Path(path_type=Path), default="engines", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Checkpoint, .pt.")
@one_line_errors
def main(engine_dir: Path, output: Path) -> None:
    write_checkpoint(engine_dir, output)


if __name__ == "__main__":
    main()
