"""Checkpoints: this project's are written and read, the authors' two formats are read, others are one-line errors."""

import gzip
import pathlib
import pickle

import pytest
import torch

from runtime.errors import InputError
from train.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.model.network import LEVELS, NetworkConfig, RPNet

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROVENANCE = {"data": "nothing", "steps": 3, "recipe": {"loss": "plain"}, "licence": "Apache-2.0"}


def _network(res_blocks=2, seed=0):
    torch.manual_seed(seed)
    return RPNet(NetworkConfig(res_blocks=res_blocks)).eval()


def _authors_state(network):
    """Return the network's tensors under the names of the released code, written down layer by layer."""
    blocks = network.config.res_blocks
    modules = {f"encoder.block{n + 1}.main": network.extractor.convolutions[n] for n in range(4)}
    for level in LEVELS:
        estimator = network.estimators[str(level)]
        mains = [estimator.entry, *estimator.blocks]
        modules |= {f"decoder{level}.Conv{n + 1}.main": conv for n, conv in enumerate(mains)}
        modules[f"decoder{level}.Conv{blocks + 2}"] = estimator.narrow
        modules[f"decoder{level}.Conv{blocks + 3}"] = estimator.flow
    return {
        f"{name}.{kind}": getattr(conv, kind).detach() for name, conv in modules.items() for kind in ("weight", "bias")
    }


def _released(network):
    return {
        "config": {"first_channel": 8, "in_channel": 1, "size": (160, 192, 160)},
        "model_state": _authors_state(network),
    }


def _bare(network):
    grids = {f"transformer.{n}.grid": torch.zeros(1, 3, 4, 4, 4) for n in range(4)}
    return _authors_state(network) | grids


def _same_tensors(state, network):
    expected = network.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def _saved(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    return path


def _refused(path, *words):
    """Check that a file is refused in one line that contains every word; return the message."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


@pytest.fixture
def ours(tmp_path):
    network = _network()
    path = tmp_path / "best.pt"
    save_checkpoint(path, Checkpoint(network.config, network.state_dict(), PROVENANCE))
    return path


def test_ours_there_and_back(tmp_path):
    network, path = _network(res_blocks=3), tmp_path / "best.pt"
    save_checkpoint(path, Checkpoint(network.config, network.state_dict(), PROVENANCE, {"step": 7}))
    loaded = load_checkpoint(path)
    assert loaded.config == network.config and loaded.provenance == PROVENANCE and loaded.training == {"step": 7}
    _same_tensors(loaded.state, network)
    assert not loaded.network().training


def test_a_deepened_network_leaves_positive_activations_as_they_were():
    shallow = _network(res_blocks=1)
    for estimator in shallow.estimators.values():
        for convolution in (estimator.entry, *estimator.blocks):
            convolution.bias.data += 50  # far above what the convolutions make of an image in [0, 1]
    deep = Checkpoint(shallow.config, shallow.state_dict()).deepened(4)
    images = torch.rand(2, 1, 1, 16, 16, 16)
    assert deep.config == NetworkConfig(res_blocks=4)
    assert torch.allclose(deep.network()(*images), shallow(*images), rtol=1e-4, atol=1e-4)


def test_a_network_is_not_made_shallower():
    with pytest.raises(InputError, match="res_blocks: got 1, expected at least the 2 there are"):
        Checkpoint(NetworkConfig(), _network().state_dict()).deepened(1)


def test_ours_is_plain_types_and_tensors(ours):
    content = torch.load(ours, weights_only=True)
    assert content["format"] == "rpnet-checkpoint" and content["version"] == 1
    assert content["config"] == {"first_channels": 8, "res_blocks": 2}
    assert "training" not in content


@pytest.mark.parametrize("form", [_released, _bare])
@pytest.mark.parametrize("res_blocks", range(5))
def test_authors_forms_give_the_same_tensors_and_the_number_of_blocks(tmp_path, form, res_blocks):
    network = _network(res_blocks)
    loaded = load_checkpoint(_saved(tmp_path, form(network)))
    assert loaded.config == network.config
    assert loaded.provenance["licence"] == "not stated" and loaded.training is None
    _same_tensors(loaded.state, network)


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "several wrappers": lambda state: {"ema": {"model_state_dict": state}},
    "data parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("names", ["ours", "authors'"])
def test_tensors_are_found_in_wrappers_and_behind_prefixes(tmp_path, wrap, names):
    network = RPNet(NetworkConfig(first_channels=4, res_blocks=1))
    state = network.state_dict() if names == "ours" else _authors_state(network)
    found = load_checkpoint(_saved(tmp_path, wrap(state)))
    assert found.config == network.config and found.provenance["licence"] == "not stated"
    _same_tensors(found.state, network)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    state = load_checkpoint(_saved(tmp_path, {name: t.half() for name, t in _network().state_dict().items()})).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("form", [_released, _bare])
def test_missing_unexpected_and_misshapen_tensors_are_named_as_the_file_names_them(tmp_path, form):
    content = form(_network())
    state = content.get("model_state", content)
    del state["decoder3.Conv2.main.bias"]
    state["decoder2.Conv9.weight"] = torch.zeros(1)
    state["encoder.block1.main.bias"] = torch.zeros(9)
    message = _refused(
        _saved(tmp_path, content), "missing: decoder3.Conv2.main.bias", "unexpected: decoder2.Conv9.weight"
    )
    assert "wrong shape: encoder.block1.main.bias (9,) instead of (8,)" in message


def test_ours_with_wrong_tensors_is_refused_and_many_names_are_abbreviated(ours):
    content = torch.load(ours, weights_only=True)
    content["model"] = {name: t for name, t in content["model"].items() if not name.startswith("estimators")}
    torch.save(content, ours)
    assert "and 34 more" in _refused(ours, "missing: estimators.4.entry.weight")


def test_a_tensor_that_is_none_is_refused(ours):
    content = torch.load(ours, weights_only=True)
    content["model"]["extractor.convolutions.0.bias"] = None
    torch.save(content, ours)
    _refused(ours, "extractor.convolutions.0.bias")


def test_a_newer_version_is_refused(ours):
    content = torch.load(ours, weights_only=True)
    torch.save(content | {"version": 2}, ours)
    _refused(ours, "version 2", "expected 1")


@pytest.mark.parametrize("config", [{"res_blocks": 9}, {"depth": 3}, {"res_blocks": "two"}, {"first_channels": 8.0},
                                     {"first_channels": 10**6}])  # fmt: skip
def test_a_config_that_is_none_of_ours_is_refused(ours, config):
    content = torch.load(ours, weights_only=True)
    torch.save(content | {"config": config}, ours)
    _refused(ours, "expected")


def test_a_missing_file_is_refused(tmp_path):
    _refused(tmp_path / "none.pt", "does not exist")


@pytest.mark.parametrize("kept", [0, 10, 5_000, -200])
def test_a_truncated_file_is_refused(ours, kept):
    ours.write_bytes(ours.read_bytes()[:kept])
    _refused(ours, "damaged or not a checkpoint")


def _file(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"P5 not a checkpoint", "damaged or not a checkpoint"),
        (pickle.dumps(print, protocol=2), "holds the Python object"),
        (pickle.dumps(print, protocol=4), "is damaged or not a checkpoint"),
        (b'\x58\x02\x00\x00\x00\x00\x00\x00{"a":{}}', "is a safetensors file"),
        (gzip.compress(b"something"), "is compressed; unpack it"),
        ((ROOT / "engines/estimator_level1.f56ee429.onnx").read_bytes(), "is an ONNX graph"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
    ],
    ids=["text", "code", "newer pickle", "safetensors", "gzip", "onnx", "hdf5"],
)
def test_another_file_is_named_and_nothing_in_it_is_run(tmp_path, content, words):
    _refused(_file(tmp_path, content), words)


def test_a_pickled_module_is_refused_with_what_to_do(tmp_path):
    named = "the Python object train.model.network.RPNet"
    _refused(_saved(tmp_path, _network()), named, "save the module's state_dict()")


def test_a_script_archive_is_refused_with_what_to_do(tmp_path):
    torch.jit.script(torch.nn.Conv3d(1, 1, 1)).save(tmp_path / "scripted.pt")
    _refused(tmp_path / "scripted.pt", "TorchScript archive", "state_dict()")


@pytest.mark.parametrize("place", ["weight", "record's name", "pickle"])
def test_every_byte_counts(ours, place):
    """PyTorch does not verify the checksums that it writes; a flipped bit of a weight would go unnoticed."""
    content, state = bytearray(ours.read_bytes()), load_checkpoint(ours).state
    at = {
        "weight": content.index(state["estimators.1.entry.weight"].numpy().tobytes()) + 3,
        "record's name": content.index(b"data.pkl"),
        "pickle": content.index(b"rpnet-checkpoint") + 2,
    }[place]
    content[at] ^= 0x40
    ours.write_bytes(content)
    _refused(ours, "is damaged", "copy it again")


@pytest.mark.parametrize("content", [[1, 2], {"weights": torch.zeros(2)}, {}])
def test_a_torch_file_of_something_else_is_refused(tmp_path, content):
    _refused(_saved(tmp_path, content), "checkpoint:")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(ours, monkeypatch):
    before, write = ours.read_bytes(), pathlib.Path.write_bytes

    def break_off(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "write_bytes", break_off)
    network = _network(seed=1)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(ours, Checkpoint(network.config, network.state_dict()))
    assert ours.read_bytes() == before and [file.name for file in ours.parent.iterdir()] == [ours.name]
