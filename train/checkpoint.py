"""Checkpoints: one format of ours, and the two the authors of IIRP-Net left behind, which are only read.

Ours is a `torch.save` of plain types and tensors that loads with ``weights_only=True``::

    {"format": "rpnet-checkpoint", "version": 1, "config": {...}, "provenance": {...}, "model": {name: tensor},
     "training": {...} (only in checkpoints that training can resume from)}
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.geometry.errors import InputError, first_line
from runtime.geometry.whole_files import atomic_path
from train.network import LEVELS, NetworkConfig, RPNet

FORMAT = "rpnet-checkpoint"
VERSION = 1
_SHOWN = 6
_UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and where it comes from. `training` holds what resuming needs, or is None."""

    config: NetworkConfig
    state: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None

    def network(self) -> RPNet:
        """The network in float32 on the CPU, in eval mode."""
        network = RPNet(self.config)
        network.load_state_dict(self.state)
        return network.eval()

    def deepened(self, res_blocks: int) -> "Checkpoint":
        """Return the checkpoint with `res_blocks` per estimator, the further ones zero, to train on from.

        A block of zeros leaves what is positive as it is and makes what is negative ten times smaller, so the flows are
        nearly those of the shallower network.

        Raises:
            InputError: fewer blocks than there are.
        """
        if res_blocks < self.config.res_blocks:
            raise InputError(f"res_blocks: got {res_blocks}, expected at least the {self.config.res_blocks} there are")
        config = replace(self.config, res_blocks=res_blocks)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in RPNet(config).state_dict().items()}
        return Checkpoint(config, zeros | dict(self.state), self.provenance)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write our format, whole or not at all."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.as_dict(),
        "provenance": dict(checkpoint.provenance),
        "model": {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state.items()},
    }
    if checkpoint.training is not None:
        content["training"] = dict(checkpoint.training)
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours or of the authors (either form), onto the CPU.

    Raises:
        InputError: the file is missing, damaged, no checkpoint, of a newer version, or its tensors do not fit.
    """
    content = _read(Path(path))
    if content.get("format") == FORMAT:
        return _ours(path, content)
    return _authors(path, content)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"checkpoint: {path} is not a file; give a .pt file written by `train`")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = first_line(error)[:120]
        raise InputError(f"checkpoint: {path} is damaged or no checkpoint ({reason}); copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint: {path} holds a {type(content).__name__}, expected a dict with tensors")
    return content


def _ours(path: str | Path, content: dict) -> Checkpoint:
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise InputError(f"checkpoint: {path} has version {version}, expected 1 to {VERSION}; update this program")
    missing = [key for key in ("config", "model", "provenance") if not isinstance(content.get(key), dict)]
    if missing:
        raise InputError(f"checkpoint: {path} has no {', '.join(missing)}; write it again with `train`")
    try:
        config = NetworkConfig(**content["config"])
    except TypeError as error:
        raise InputError(f"checkpoint: {path} has config {content['config']}, expected {NetworkConfig()}") from error
    _check(path, config, content["model"])
    return Checkpoint(config, content["model"], content["provenance"], content.get("training"))


def _abbreviated(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check(path: str | Path, config: NetworkConfig, state: Mapping, alias: Mapping[str, str] | None = None) -> None:
    """Refuse a state whose names or shapes are not the network's; `alias` translates our names into the file's."""
    alias = alias or {}
    expected = {name: tuple(tensor.shape) for name, tensor in RPNet(config).state_dict().items()}
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
    missing = [alias.get(name, name) for name in expected if name not in shapes]
    unexpected = [str(alias.get(name, name)) for name in shapes if name not in expected]
    wrong = [
        f"{alias.get(name, name)} {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
    problems = "; ".join(f"{kind}: {_abbreviated(names)}" for kind, names in found if names)
    if problems:
        raise InputError(f"checkpoint: {path} does not hold RP-Net's tensors ({problems}); expected {config}")


def _authors(path: str | Path, content: dict) -> Checkpoint:
    """{"config", "model_state"}, or the bare state dict with `transformer.*.grid` buffers."""
    wrapped = isinstance(content.get("model_state"), Mapping)
    state = content["model_state"] if wrapped else content
    state = {str(name): tensor for name, tensor in state.items() if not re.fullmatch(r"transformer\..*grid", str(name))}
    if not any(re.match(r"(encoder\.block|decoder)\d", name) for name in state):
        found = _abbreviated(list(state)) or "nothing"
        raise InputError(f"checkpoint: {path} holds {found}, no RP-Net; give a .pt file written by `train`")
    config = _authors_config(state)
    ours = {theirs: name for name, theirs in _authors_names(config).items()}
    renamed = {ours.get(name, name): tensor for name, tensor in state.items()}
    _check(path, config, renamed, _authors_names(config))
    provenance = {"data": "authors' released format", "licence": "not stated"}
    return Checkpoint(config, {name: tensor.float() for name, tensor in renamed.items()}, provenance)


def _authors_config(state: Mapping[str, Tensor]) -> NetworkConfig:
    """Channels of the first convolution; residual blocks: `Conv2.main` upwards in any decoder."""
    numbers = [int(m[1]) for name in state if (m := re.fullmatch(r"decoder\d\.Conv(\d+)\.main\.weight", name))]
    first = state.get("encoder.block1.main.weight")
    channels = len(first) if isinstance(first, Tensor) and first.ndim else NetworkConfig().first_channels
    return NetworkConfig(first_channels=channels, res_blocks=max(numbers, default=1) - 1)


def _authors_names(config: NetworkConfig) -> dict[str, str]:
    """Our tensor names -> the authors'."""
    modules = {f"extractor.convolutions.{n}": f"encoder.block{n + 1}.main" for n in range(4)}
    last = config.res_blocks + 1
    for level in LEVELS:
        ours, theirs = f"estimators.{level}", f"decoder{level}"
        modules[f"{ours}.entry"] = f"{theirs}.Conv1.main"
        modules |= {f"{ours}.blocks.{n}": f"{theirs}.Conv{n + 2}.main" for n in range(config.res_blocks)}
        modules |= {f"{ours}.narrow": f"{theirs}.Conv{last + 1}", f"{ours}.flow": f"{theirs}.Conv{last + 2}"}
    return {f"{a}.{kind}": f"{b}.{kind}" for a, b in modules.items() for kind in ("weight", "bias")}
