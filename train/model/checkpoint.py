"""Checkpoints in our own format, and reading of those of other programs (`train.model.foreign_states`).

Our format is a `torch.save` of plain types and tensors that loads with ``weights_only=True``::

    {"format": "rpnet-checkpoint", "version": 1, "config": {...}, "provenance": {...}, "model": {name: tensor},
     "training": {...} (only in checkpoints that training can resume from)}
"""

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import InputError, first_line
from runtime.host.files.regular_files import require_file
from runtime.host.files.whole_files import write_bytes
from train.model.foreign_states import abbreviated, read_foreign
from train.model.network import NetworkConfig, RPNet

FORMAT = "rpnet-checkpoint"
VERSION = 1
# Other formats: the bytes that their files begin with, and what to do with one.
_OTHER_KINDS = {
    "a safetensors file": (rb".{6}\0\0\{", "load it with safetensors and torch.save the tensors by name"),
    "an ONNX graph or another protobuf": (rb"\x08[\x01-\x20]\x12", "export needs the checkpoint it was made from"),
    "an HDF5 file (Keras, TensorFlow?)": (rb"\x89HDF", "give the PyTorch checkpoint"),
    "a NumPy archive": (rb"\x93NUMPY", "torch.save its arrays as tensors by name"),
    "compressed": (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "unpack it first"),
}
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and its origin.

    Attributes:
        config: configuration of the network.
        state: the network's tensors by name.
        provenance: origin of the weights, in plain types.
        training: the state that a resumed run needs, or None.
    """

    config: NetworkConfig
    state: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None

    def network(self) -> RPNet:
        """Return the network in float32 on the CPU, in eval mode."""
        network = RPNet(self.config)
        network.load_state_dict(self.state)
        return network.eval()

    def deepened(self, res_blocks: int) -> "Checkpoint":
        """Return the checkpoint with `res_blocks` per estimator, the added ones zero, to continue training from.

        A block of zeros leaves positive values unchanged and makes negative ones ten times smaller, so the flows are
        nearly those of the shallower network.

        Raises:
            InputError: `res_blocks` is less than the network has.
        """
        if res_blocks < self.config.res_blocks:
            raise InputError(f"res_blocks: got {res_blocks}, expected at least the {self.config.res_blocks} there are")
        config = replace(self.config, res_blocks=res_blocks)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in RPNet(config).state_dict().items()}
        return Checkpoint(config, zeros | dict(self.state), self.provenance)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in our format, completely or not at all.

    Raises:
        InputError, OSError: the file cannot be written, for instance because the disk is full.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.as_dict(),
        "provenance": dict(checkpoint.provenance),
        "model": {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state.items()},
    }
    if checkpoint.training is not None:
        content["training"] = dict(checkpoint.training)
    # Serialised in memory first: torch.save reports a full disk by an error of its own kind.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours, or RP-Net's tensors from one of another program, onto the CPU.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint or of a newer version, or its tensors do not fit.
    """
    content = _read(Path(path))
    if content.get("format") == FORMAT:
        return _ours(path, content)
    found = read_foreign(path, content)
    _check(path, found.config, found.state, found.file_names)
    state = {name: tensor.float() for name, tensor in found.state.items()}
    return Checkpoint(found.config, state, {"data": found.data, "licence": "not stated"})


def _read(path: Path) -> dict:
    require_file(path, "checkpoint")
    _check_kind(path)
    _check_records(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which are refused below anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises a dozen kinds of errors for damaged pickles
        if pickled := re.search(r"(?:global|GLOBAL|class) ([\w.]+)", str(error)):
            raise InputError(
                f"checkpoint: {path} holds the Python object {pickled[1]}, which may run any code when it is loaded; "
                "save the module's state_dict() instead"
            ) from error
        raise InputError(f"checkpoint: {path} is damaged or not a checkpoint; copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint: {path} holds a {type(content).__name__}, expected a dict with tensors")
    return content


def _check_kind(path: Path) -> None:
    """Refuse files of other formats, recognised by their content."""
    with path.open("rb") as file:
        start = file.read(16)
    for kind, (begins, remedy) in _OTHER_KINDS.items():
        if re.match(begins, start, re.DOTALL):
            raise InputError(f"checkpoint: {path} is {kind}; {remedy}")


def _check_records(path: Path) -> None:
    """Refuse a zip archive whose content does not match its checksums, which torch.load does not compare."""
    if not zipfile.is_zipfile(path):
        return  # PyTorch's format before 1.6, which has no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
    except _DAMAGED as error:
        raise InputError(f"checkpoint: {path} is damaged ({first_line(error)[:80]}); copy it again") from error
    if damaged:
        raise InputError(f"checkpoint: {path} is damaged in its record {damaged}; copy it again")
    if any("/code/" in name for name in names):
        raise InputError(f"checkpoint: {path} is a TorchScript archive; save the module's state_dict() instead")


def _ours(path: str | Path, content: dict) -> Checkpoint:
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        got = first_line(version)
        raise InputError(f"checkpoint: {path} has version {got}, expected 1 to {VERSION}; update this program")
    missing = [key for key in ("config", "model", "provenance") if not isinstance(content.get(key), dict)]
    if missing:
        raise InputError(f"checkpoint: {path} has no {', '.join(missing)}; write it again with `train`")
    found: dict[str, Any] = {
        str(name): value if isinstance(value, int) else type(value) for name, value in content["config"].items()
    }
    if found.keys() != NetworkConfig().as_dict().keys() or not all(isinstance(value, int) for value in found.values()):
        raise InputError(f"checkpoint: {path} has config {first_line(found)}, expected one like {NetworkConfig()}")
    config = NetworkConfig(**found)
    _check(path, config, content["model"])
    return Checkpoint(config, content["model"], content["provenance"], content.get("training"))


def _check(path: str | Path, config: NetworkConfig, state: Mapping, alias: Mapping[str, str] | None = None) -> None:
    """Refuse a state whose names or shapes differ from the network's; `alias` maps our names to the file's."""
    alias = alias or {}
    with torch.device("meta"):  # shapes without memory
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
    problems = "; ".join(f"{kind}: {abbreviated(names)}" for kind, names in found if names)
    if problems:
        raise InputError(f"checkpoint: {path} does not hold RP-Net's tensors ({problems}); expected {config}")
