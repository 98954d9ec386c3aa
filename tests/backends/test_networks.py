"""Networks of every CPU backend against the PyTorch network: features and residuals, at any size, in any order."""

import copy

import numpy as np
import pytest
import torch

from runtime.backends.engine_set import load_engine_set, sealed
from runtime.backends.registry import BACKENDS
from runtime.errors import InputError
from runtime.host.machine import processor_features
from runtime.loop.schedules import LEVELS

SHAPES = [(16, 24, 32), (24, 16, 40), (48, 40, 16)]
HERE = {name: backend for name, backend in BACKENDS.items() if not backend.gpu}  # those on a GPU: test_networks_*.py
IMPLEMENTATIONS = [(name, precision) for name, backend in HERE.items() for precision in backend.precisions]
# bf16 keeps 8 bits of a number, fp16 11; five convolutions add up to a few units in the last place.
TOLERANCE = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 5e-2}


def opened(folder, name: str, precision: str = "fp32"):
    networks, _ = BACKENDS[name].load()
    try:
        return networks(load_engine_set(folder), 2, precision)
    except InputError as error:
        if "is not available on this computer" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module", params=IMPLEMENTATIONS, ids="-".join)
def networks(request, engine_dir):
    return opened(engine_dir, *request.param)


@pytest.fixture(scope="module")
def network(checkpoint):
    from train.model.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint).network()


def head(shape, seed=0) -> np.ndarray:
    """Return an image with random values in the middle and exact zeros around them, as in a skull-stripped scan."""
    image = np.zeros(shape, np.float32)
    inside = tuple(slice(size // 3, 2 * size // 3 + 1) for size in shape)
    image[inside] = np.random.default_rng(seed).random(image[inside].shape, np.float32)
    return image


def close(found, expected, networks) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE[networks.precision] * max(np.abs(expected).max(), 1e-3)


def last_axis(tensor) -> np.ndarray:
    return np.moveaxis(tensor[0].numpy(), 0, -1)


def encoded(network, image) -> dict[int, np.ndarray]:
    with torch.inference_mode():
        return {level: last_axis(found) for level, found in network.encode(torch.from_numpy(image)[None, None]).items()}


def estimated(network, level, features) -> np.ndarray:
    planar = torch.from_numpy(np.ascontiguousarray(np.moveaxis(features, -1, 0)))[None]
    with torch.inference_mode():
        return last_axis(network.estimate(level, *planar.split(planar.shape[1] // 2, dim=1)))


def filled(networks, level, features) -> np.ndarray:
    buffer = networks.estimator_input(level, features.shape[:3])
    assert buffer.shape == features.shape
    buffer[...] = features
    return buffer


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features(networks, network, shape):
    for image in (head(shape), np.random.default_rng(1).random(shape, np.float32)):
        found, expected = networks.features(image), encoded(network, image)
        assert set(found) == set(LEVELS)
        for level in LEVELS:
            close(found[level], expected[level], networks)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_residual(networks, network, shape, level):
    """With features of an image, background included, and with features that are nowhere background."""
    networks.features(head(shape))
    pair = [encoded(network, head(shape, seed))[level] for seed in (1, 2)]
    skull_stripped = np.concatenate(pair, axis=-1)
    for features in (skull_stripped, np.random.default_rng(3).random(skull_stripped.shape, np.float32)):
        found = networks.residual(level, filled(networks, level, features))
        close(found, estimated(network, level, features), networks)


def test_features_stay_what_they_are(networks):
    """Feature maps are the caller's: the next image does not change them."""
    first = networks.features(head((16, 16, 16), 1))
    before = {level: features.copy() for level, features in first.items()}
    networks.features(head((16, 16, 16), 2))
    networks.residual(1, filled(networks, 1, np.concatenate([first[1]] * 2, axis=-1)))
    for level in LEVELS:
        np.testing.assert_array_equal(first[level], before[level])


def test_the_same_again_after_another_size(networks):
    """Engines and buffers of a size are released when another size comes; no trace of it shows in the results."""
    images = [head(shape, seed) for shape, seed in (((16, 24, 16), 1), ((24, 16, 16), 2))]

    def once(image):
        features = networks.features(image)
        inputs = {level: filled(networks, level, np.concatenate([f, f], -1)) for level, f in features.items()}
        return {level: networks.residual(level, buffer).copy() for level, buffer in inputs.items()}

    first, _, again = once(images[0]), once(images[1]), once(images[0])
    for level in LEVELS:
        np.testing.assert_array_equal(again[level], first[level])


def test_a_value_that_is_not_finite_is_not_taken_for_background(networks):
    features = np.concatenate([networks.features(head((16, 16, 16)))[1]] * 2, axis=-1)
    features[8, 8, 8, 3] = np.nan
    assert np.isnan(networks.residual(1, filled(networks, 1, features))).any()


def test_close(engine_dir):
    for name, backend in HERE.items():
        networks = opened(engine_dir, name, backend.precisions[0])
        assert not networks.closed
        networks.close()
        assert networks.closed


def to_fp16(tensor):
    return tensor.half().float()


def rounded_copy(module):
    """Return a copy of the network with weights rounded to fp16, kept in float32."""
    return copy.deepcopy(module).half().float()


class TestRounding:
    """fp16 on the CPU rounds the output of every node, which is what the parity gate checks.

    The reference computes in float32 on rounded weights and rounds after every layer. If a sum lies just between two
    fp16 numbers, another order of summation gives the other one; so a few numbers differ by a step, not most of them.
    """

    def test_features(self, engine_dir, network):
        image = np.random.default_rng(0).random((24, 32, 40), np.float32)
        found, exact = opened(engine_dir, "onnxruntime", "fp16").features(image), encoded(network, image)
        half, x = rounded_copy(network.extractor), to_fp16(torch.from_numpy(image))[None, None]
        with torch.inference_mode():
            for level, convolution in enumerate(half.convolutions, start=1):
                x = to_fp16(convolution(x if level == 1 else to_fp16(torch.nn.functional.avg_pool3d(x, 2))))
                x = to_fp16(torch.nn.functional.leaky_relu(x, 0.1))
                assert (found[level] == last_axis(x)).mean() > 0.9
                assert (found[level] == to_fp16(torch.from_numpy(exact[level])).numpy()).mean() < 0.9

    @pytest.mark.parametrize("level", LEVELS)
    def test_residual(self, engine_dir, network, level):
        from export.graphs import FoldedEstimator

        channels = 2 * network.config.feature_channels[level]
        features = np.random.default_rng(level).random((12, 16, 20, channels), np.float32)
        networks = opened(engine_dir, "onnxruntime", "fp16")
        found = networks.residual(level, filled(networks, level, features))
        half = rounded_copy(FoldedEstimator(network.estimators[str(level)]))
        x = to_fp16(torch.from_numpy(features)).movedim(-1, 0)[None]
        with torch.inference_mode():
            for convolution in half.activated:
                x = to_fp16(torch.nn.functional.leaky_relu(to_fp16(convolution(x)), 0.1))
            for convolution in half.linear:
                x = to_fp16(convolution(x))
        np.testing.assert_array_equal(found, found.astype(np.float16))
        assert (found == last_axis(x)).mean() > 0.5
        assert np.abs(found - last_axis(x)).max() <= 1e-3 * np.abs(last_axis(x)).max()


class TestOpenVino:
    def test_halves_of_a_large_volume_give_what_the_whole_gives(self, engine_dir, network, monkeypatch):
        from runtime.backends.networks import openvino as networks_openvino

        monkeypatch.setattr(networks_openvino, "LARGE", 0)
        networks = opened(engine_dir, "openvino")
        shape = (32, 16, 24)
        networks.features(head(shape))
        for size in (shape, (17, 8, 8), (6, 8, 8)):
            features = np.random.default_rng(0).random((*size, 16), np.float32)
            close(networks.residual(1, filled(networks, 1, features)), estimated(network, 1, features), networks)

    def test_compiled_engines_are_kept_on_disk(self, engine_dir, tmp_path, monkeypatch):
        from runtime.backends.networks import openvino as networks_openvino

        monkeypatch.setenv("RPNET_CACHE", str(tmp_path))
        image = head((16, 16, 16))
        first = opened(engine_dir, "openvino").features(image)
        blobs = list((tmp_path / "rpnet-openvino").glob("feature_extractor.*.blob"))
        assert len(blobs) == 1
        monkeypatch.setattr(networks_openvino, "_sized", lambda *_: pytest.fail("compiled again"))
        again = opened(engine_dir, "openvino").features(image)
        np.testing.assert_array_equal(again[1], first[1])

    def test_a_damaged_one_is_made_again(self, engine_dir, tmp_path, monkeypatch):
        monkeypatch.setenv("RPNET_CACHE", str(tmp_path))
        image = head((16, 16, 16))
        first = opened(engine_dir, "openvino").features(image)
        for blob in (tmp_path / "rpnet-openvino").glob("*.blob"):
            blob.write_bytes(blob.read_bytes()[:100])
        np.testing.assert_array_equal(opened(engine_dir, "openvino").features(image)[1], first[1])

    def test_another_graph_size_precision_or_thread_count_is_another_engine(self, engine_dir, engines):
        networks, _ = BACKENDS["openvino"].load()
        one = networks(engines.engine_set, 1)
        names = {one._blob("estimator_level1", shape).name for shape in ((1, 16, 8, 8, 8), (1, 16, 8, 8, 16))}
        names |= {networks(engines.engine_set, 2)._blob("estimator_level1", (1, 16, 8, 8, 8)).name}
        names |= {one._blob("estimator_level2", (1, 16, 8, 8, 8)).name}
        assert len(names) == 4

    def test_bf16_is_refused_where_the_processor_has_none(self, engine_dir, monkeypatch):
        from runtime.backends.networks import openvino as networks_openvino

        left = processor_features() - networks_openvino.BF16_INSTRUCTIONS
        monkeypatch.setattr(networks_openvino, "processor_features", lambda: left)
        with pytest.raises(
            InputError, match=r"--precision: bf16 is not available on this computer: .* none of the bf16"
        ):
            networks_openvino.OpenVinoNetworks(load_engine_set(engine_dir), 1, "bf16")


class TestChoice:
    """`auto` takes the first backend that fits, and reports why it passed over the others."""

    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch):
        monkeypatch.setattr("runtime.backends.registry.find_gpu", lambda: "this computer has no NVIDIA driver")

    def test_native_with_avx512_and_openvino_without(self, engines, monkeypatch):
        from runtime.backends import choice, registry

        for features, expected in (({"avx512f"}, "native"), ({"avx2"}, "openvino")):
            monkeypatch.setattr(registry, "processor_features", lambda features=features: frozenset(features))
            name, reason = choice.choose_backend("auto", engines.engine_set)
            assert name == expected
        assert "not native, this processor has no avx512f" in reason

    def test_a_precision_decides(self, engines):
        from runtime.backends.choice import choose_backend

        assert choose_backend("auto", engines.engine_set, "bf16")[0] == "openvino"

    def test_other_channels_decide(self, engine_copy):
        import json

        from runtime.backends.choice import choose_backend

        path = engine_copy / "manifest.json"
        manifest = json.loads(path.read_text())
        next(entry for entry in manifest["levels"] if entry["level"] == 1)["channels"] = 12
        path.write_text(json.dumps(sealed(manifest)))
        engine_set = load_engine_set(engine_copy)
        assert choose_backend("auto", engine_set)[0] == "openvino"
        with pytest.raises(InputError, match="--backend: native runs networks with 8 channels at level 1, this one"):
            choose_backend("native", engine_set)

    def test_what_is_not_installed_is_passed_by_or_refused(self, engines, monkeypatch):
        from runtime.backends import choice, registry

        there = {"onnxruntime"}
        monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: name if name in there else None)
        name, reason = choice.choose_backend("auto", engines.engine_set)
        assert name == "onnxruntime" and "no openvino, openvino is not installed" in reason
        with pytest.raises(InputError, match="--backend: openvino needs the package openvino; pip install openvino"):
            choice.choose_backend("openvino", engines.engine_set)
        there.clear()
        with pytest.raises(InputError, match="--backend: got auto, but no backend can run these engines"):
            choice.choose_backend("auto", engines.engine_set)

    def test_what_is_installed_but_cannot_be_imported_is_passed_by_or_refused(self, engine_dir, monkeypatch):
        """A shared library is missing, as after an incomplete update: one line, and `auto` goes on."""
        import runtime
        from runtime.backends import registry

        def load(place):
            if any(name in place for name in broken):
                raise error
            return whole(place)

        broken, error, whole = ["native", "openvino"], ImportError("libtbb.so.12: cannot open it\nmore"), registry._load
        monkeypatch.setattr(registry, "processor_features", lambda: frozenset({"avx512f"}))
        monkeypatch.setattr(registry, "_load", load)
        with runtime.open_engines(engine_dir) as engines:
            assert engines.backend == "onnxruntime"
        for name, library in (("native", "onnx"), ("openvino", "openvino")):
            line = f"{library} or a library it needs cannot be imported (libtbb.so.12: cannot open it), reinstall it"
            assert f"not {name}, {line}" in engines.reason
            with pytest.raises(InputError) as refusal:
                runtime.open_engines(engine_dir, name)
            assert str(refusal.value) == f"--backend: {line}"
        broken, error = ["networks"], OSError(8, "Exec format error")
        with pytest.raises(InputError, match=r"got auto, but no backend can run .*Exec format error.*; pip install"):
            runtime.open_engines(engine_dir)

    @pytest.mark.parametrize(
        "backend, precision, message",
        [
            ("auto", "fp8", "--precision: got 'fp8', expected auto or one of fp32, fp16, bf16"),
            ("native", "bf16", "--precision: native computes in fp32, not in bf16; use --backend openvino"),
            ("cudnn", "fp32", "--backend: got 'cudnn', expected auto or one of .*native, openvino, onnxruntime"),
        ],
    )
    def test_what_cannot_be_had_is_one_line(self, engine_dir, backend, precision, message):
        import runtime

        with pytest.raises(InputError, match=message):
            runtime.open_engines(engine_dir, backend, precision=precision)
