"""No engine set, however damaged, does more than open as it was published or be refused in one line."""

import copy
import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.engine_set import load_engine_set, sealed
from tests.fuzz.mutations import anywhere, fuzzing
from tests.fuzz.test_inputs import refused_or_fine

SHIPPED = Path(__file__).resolve().parents[2] / "engines"
ODD = (None, -1, 0, 3.5, 10**400, float("inf"), float("nan"), "", "x\0y", "../x", "/dev/zero", [], {}, [1, 2], True)


@pytest.fixture
def linked(tmp_path) -> Path:
    """The shipped set, its files links to the originals: a test replaces those that it damages."""
    for file in SHIPPED.glob("*.onnx"):
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def test_bytes_of_the_manifest(linked):
    sound = (SHIPPED / "manifest.json").read_bytes()

    @fuzzing(150)
    @given(anywhere(sound))
    def tried(mutated: bytes) -> None:
        (linked / "manifest.json").write_bytes(mutated)
        with refused_or_fine():
            load_engine_set(linked)
            assert json.loads(mutated) == json.loads(sound), "what is believed is what was published"

    tried()


def places(content: object, path: tuple = ()) -> list[tuple]:
    """Return the keys and indices that lead to every value inside nested dicts and lists."""
    inner = dict(enumerate(content)) if isinstance(content, list) else content if isinstance(content, dict) else {}
    below = (places(one, (*path, key)) for key, one in inner.items())
    return [(*path, key) for key in inner] + list(itertools.chain.from_iterable(below))


def test_values_of_a_manifest_with_the_right_hash(linked):
    """As a program writes one that does not know the rules."""
    sound = json.loads((SHIPPED / "manifest.json").read_bytes())

    @fuzzing(150)
    @given(st.integers(0, 2**32))
    def tried(seed: int) -> None:
        numbers, content = random.Random(seed), copy.deepcopy(sound)
        for _ in range(numbers.randint(1, 2)):
            *path, last = numbers.choice(places(content))
            holder = content
            for key in path:
                holder = holder[key]
            holder[last] = copy.deepcopy(numbers.choice(ODD))
        (linked / "manifest.json").write_text(json.dumps(sealed(content)))
        with refused_or_fine():
            load_engine_set(linked)

    tried()


def test_bytes_of_an_engine(linked):
    name = next(file.name for file in linked.glob("estimator_level1.*.onnx") if "fp16" not in file.name)
    sound = (SHIPPED / name).read_bytes()
    (linked / name).unlink()  # the link
    (linked / "manifest.json").write_bytes((SHIPPED / "manifest.json").read_bytes())

    @fuzzing(100)
    @given(anywhere(sound))
    def tried(mutated: bytes) -> None:
        (linked / name).write_bytes(mutated)
        with refused_or_fine():
            load_engine_set(linked).graph("estimator_level1")
            assert mutated == sound

    tried()
