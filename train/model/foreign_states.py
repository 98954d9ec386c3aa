"""Tensors of RP-Net in the checkpoints of other programs: bare or wrapped, under our names or the authors'.

The authors of IIRP-Net released two forms: {"config", "model_state"}, and a bare state dict with `transformer.*.grid`
buffers. Trainers wrap state dicts (`WRAPPERS`), and PyTorch adds prefixes to names (`PREFIXES`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from runtime.errors import InputError
from train.model.network import LEVELS, NetworkConfig

WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model", "net", "network", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # of DataParallel, torch.compile, Lightning modules
AUTHORS, OURS = r"(encoder\.block|decoder)\d", r"(extractor\.convolutions|estimators)\.\d"
_SHOWN = 6


@dataclass(frozen=True)
class ForeignState:
    """The tensors of RP-Net found in a checkpoint of another program.

    Attributes:
        config: configuration of the network.
        state: tensors by our names.
        file_names: the file's names by our names, if they differ.
        data: origin of the weights.
    """

    config: NetworkConfig
    state: Mapping[str, Tensor]
    file_names: Mapping[str, str] = field(default_factory=dict)
    data: str = "not stated"


def abbreviated(names: list[str]) -> str:
    """Return the first names, comma-separated, and the number of further ones."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def read_foreign(path: object, content: Mapping) -> ForeignState:
    """Find RP-Net's tensors in the content of a checkpoint of another program.

    Raises:
        InputError: there are none; the message names the content.
    """
    state = _bare(content)
    if any(re.match(OURS, name) for name in state):
        return ForeignState(_our_config(state), state)
    if any(re.match(AUTHORS, name) for name in state):
        return _authors(state)
    raise InputError(
        f"checkpoint: {path} holds {abbreviated(list(map(str, content))) or 'nothing'}, not RP-Net; give a .pt file "
        "written by `train`, or a state_dict of this network or of its authors'"
    )


def _bare(content: Mapping) -> dict[str, Tensor]:
    """Return the state dict inside any wrappers, its names without prefixes and without the authors' buffers."""
    while inner := next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    state = {_without_prefixes(str(name)): value for name, value in content.items()}
    return {name: value for name, value in state.items() if not re.fullmatch(r"transformer\..*grid", name)}


def _without_prefixes(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _first_channels(tensor: object) -> int:
    """Return the output channels of the first convolution, or the default number if `tensor` is not a tensor."""
    return len(tensor) if isinstance(tensor, Tensor) and tensor.ndim else NetworkConfig().first_channels


def _our_config(state: Mapping[str, Tensor]) -> NetworkConfig:
    numbers = [int(m[1]) for name in state if (m := re.fullmatch(r"estimators\.\d\.blocks\.(\d+)\.weight", name))]
    channels = _first_channels(state.get("extractor.convolutions.0.weight"))
    return NetworkConfig(first_channels=channels, res_blocks=max(numbers, default=-1) + 1)


def _authors(state: Mapping[str, Tensor]) -> ForeignState:
    config = _authors_config(state)
    theirs = authors_names(config)
    ours = {name: mine for mine, name in theirs.items()}
    renamed = {ours.get(name, name): tensor for name, tensor in state.items()}
    return ForeignState(config, renamed, theirs, "authors' released format")


def _authors_config(state: Mapping[str, Tensor]) -> NetworkConfig:
    """Return the configuration: residual blocks are `Conv2.main` and up in any decoder."""
    numbers = [int(m[1]) for name in state if (m := re.fullmatch(r"decoder\d\.Conv(\d+)\.main\.weight", name))]
    channels = _first_channels(state.get("encoder.block1.main.weight"))
    return NetworkConfig(first_channels=channels, res_blocks=max(numbers, default=1) - 1)


def authors_names(config: NetworkConfig) -> dict[str, str]:
    """Return the authors' names of tensors by our names."""
    modules = {f"extractor.convolutions.{n}": f"encoder.block{n + 1}.main" for n in range(4)}
    last = config.res_blocks + 1
    for level in LEVELS:
        ours, theirs = f"estimators.{level}", f"decoder{level}"
        modules[f"{ours}.entry"] = f"{theirs}.Conv1.main"
        modules |= {f"{ours}.blocks.{n}": f"{theirs}.Conv{n + 2}.main" for n in range(config.res_blocks)}
        modules |= {f"{ours}.narrow": f"{theirs}.Conv{last + 1}", f"{ours}.flow": f"{theirs}.Conv{last + 2}"}
    return {f"{a}.{kind}": f"{b}.{kind}" for a, b in modules.items() for kind in ("weight", "bias")}
