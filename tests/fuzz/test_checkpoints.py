"""No checkpoint, however damaged, does more than be read as it was written or be refused in one line."""

import copy
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import anywhere, fuzzing, written
from tests.fuzz.test_inputs import refused_or_fine
from tests.train.training import generated_run, stop_after
from train.fit import fit
from train.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.model.network import NetworkConfig, RPNet
from train.steps.run import Run

pytestmark = pytest.mark.usefixtures("own_threads")
ODD = (None, -1, 0, 3.5, float("nan"), float("inf"), 10**9, "", "many", [], {}, [1, 2], torch.zeros(2, 3), True)


def places(content: object, path: tuple = ()) -> list[tuple]:
    """Return the keys that lead to every value inside nested dicts."""
    inner = content.items() if isinstance(content, dict) else ()
    return [(*path, key) for key, _ in inner] + [found for key, one in inner for found in places(one, (*path, key))]


def changed(content: dict, numbers: random.Random) -> dict:
    """Return a copy in which one to three values are odd, or missing, or under other names."""
    result = copy.deepcopy(content)
    for _ in range(numbers.randint(1, 3)):
        *path, last = numbers.choice(places(result))
        holder = result
        for key in path:
            holder = holder[key]
        value = holder.pop(last)
        if numbers.random() < 0.8:
            name = last if numbers.random() < 0.8 else numbers.choice((f"module.{last}", 0, ""))
            holder[name] = copy.deepcopy(numbers.choice((value, *ODD)))
    return result


def test_bytes(tmp_path):
    network = RPNet(NetworkConfig(first_channels=2, res_blocks=1))
    save_checkpoint(tmp_path / "sound.pt", Checkpoint(network.config, network.state_dict(), {"licence": "none"}))

    @fuzzing(150)
    @given(anywhere((tmp_path / "sound.pt").read_bytes()))
    def tried(mutated: bytes) -> None:
        with refused_or_fine():
            found = load_checkpoint(written(tmp_path / "a.pt", mutated, packed=False))
            assert all(torch.equal(found.state[name], tensor) for name, tensor in network.state_dict().items())

    tried()


def test_content(tmp_path):
    network = RPNet(NetworkConfig(first_channels=2, res_blocks=1))
    save_checkpoint(tmp_path / "sound.pt", Checkpoint(network.config, network.state_dict(), {"licence": "none"}))
    content = torch.load(tmp_path / "sound.pt", weights_only=True)

    @fuzzing(150)
    @given(st.integers(0, 2**32))
    def tried(seed: int) -> None:
        torch.save(changed(content, random.Random(seed)), tmp_path / "a.pt")
        with refused_or_fine():
            found = load_checkpoint(tmp_path / "a.pt").network()
            assert all(torch.is_floating_point(weight) for weight in found.state_dict().values())

    tried()


def test_training_state(tmp_path):
    run = generated_run(tmp_path / "run", shape=(8, 8, 8), validation_pairs=1)
    last = fit(run, stop_after(1)).last_path
    content = torch.load(last, weights_only=True)

    @fuzzing(40)
    @given(st.integers(0, 2**32))
    def tried(seed: int) -> None:
        torch.save(content | {"training": changed(content["training"], random.Random(seed))}, last)
        with refused_or_fine():
            resumed = Run(generated_run(run.output, shape=(8, 8, 8), validation_pairs=1, resume=True))
            resumed.train_step([resumed.sources.pair(resumed.step)])

    tried()
