"""ONNX Runtime on a GPU's buffers and stream: on the stand-in GPU, where the CPU provider takes the CUDA one's place.

What this shows is the binding of buffers, layouts, sizes and the errors when something is missing; what only a GPU
shows is that the CUDA provider does the same: RPNET_TEST_GPU=1 runs these tests on one.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from runtime.backends.engine_set import EXTRACTOR, FEATURES, IMAGE, RESIDUAL, estimator_name, load_engine_set, sealed
from runtime.backends.networks.onnxruntime import CPU, OUTPUTS, OnnxRuntimeNetworks, open_session, session_options
from runtime.errors import InputError, NotAvailableError
from runtime.loop.schedules import LEVELS
from tests.backends.host_gpu.gpu import REAL, open_host_device

SHAPES = [(16, 24, 32), (24, 16, 40), (16, 24, 32)]
# On the stand-in the same provider computes the same. cuDNN sums in another order; in fp16 a sum that lies between two
# numbers may become either, and so on through five convolutions.
TOLERANCE = {"fp32": 2e-5 if REAL else 0, "fp16": 5e-3 if REAL else 0}
PLACE = {} if REAL else {"provider": CPU, "memory": "cpu"}


@pytest.fixture(scope="module")
def device():
    return open_host_device()


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def networks(request, engine_dir, device):
    from runtime.backends.networks.onnxruntime_cuda import CudaOnnxRuntimeNetworks

    try:
        return CudaOnnxRuntimeNetworks(load_engine_set(engine_dir), device, request.param, **PLACE)
    except NotAvailableError as error:
        pytest.skip(str(error))


class Sessions:
    """The same graphs in plain sessions on the CPU, on arrays of the graphs' own type: the expected results."""

    def __init__(self, engine_dir, precision):
        engine_set, options = load_engine_set(engine_dir), session_options(2)
        engines = (EXTRACTOR, *map(estimator_name, LEVELS))
        self._sessions = {name: open_session(engine_set.graph(name, precision), options) for name in engines}

    def features(self, image):
        maps = self._sessions[EXTRACTOR].run(OUTPUTS, {IMAGE: image[None, None]})
        return {level: np.moveaxis(found[0], 0, -1) for level, found in zip(sorted(LEVELS), maps, strict=True)}

    def residual(self, level, features):
        planar = np.ascontiguousarray(np.moveaxis(features, -1, 0))[None]
        return np.moveaxis(self._sessions[estimator_name(level)].run([RESIDUAL], {FEATURES: planar})[0][0], 0, -1)


@pytest.fixture(scope="module")
def expected(networks, engine_dir):
    return Sessions(engine_dir, networks.precision)


def noise(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random(shape, np.float32).astype(dtype)


def close(found, expected, networks):
    assert found.shape == expected.shape
    limit = TOLERANCE[networks.precision] * np.abs(expected).max()
    assert np.abs(found.astype(np.float64) - expected).max() <= limit


def filled(networks, device, level, features):
    """Return an estimator input that holds these features, written by the field operations."""
    from runtime.backends.fields.cuda import carry

    buffer = networks.estimator_input(level, features.shape[:3])
    assert (buffer.shape, buffer.dtype) == (features.shape, features.dtype)
    carry(device.upload(features), buffer)
    return buffer


def element(networks):
    return np.dtype({"fp32": np.float32, "fp16": np.float16}[networks.precision])


def test_features_are_the_sessions_channels_last_and_contiguous(networks, expected, device):
    for seed, shape in enumerate(SHAPES):
        image = noise(shape, seed)
        found, wanted = networks.features(device.upload(image)), expected.features(image)
        assert set(found) == set(LEVELS)
        for level in LEVELS:
            assert found[level].contiguous and found[level].dtype == element(networks)
            close(device.download(found[level]), wanted[level], networks)


@pytest.mark.parametrize("level", [3, 1])
def test_residuals_are_the_sessions(networks, expected, device, level):
    channels = 2 * channels_of(networks)[level]
    for seed, shape in enumerate([(5, 6, 7), (8, 3, 4), (5, 6, 7)]):
        features = noise((*shape, channels), seed, element(networks))
        found = networks.residual(level, filled(networks, device, level, features))
        assert (found.shape, found.dtype) == ((*shape, 3), np.float32)
        close(device.download(found), expected.residual(level, features), networks)


def channels_of(networks):
    return {level: networks.estimator_input(level, (1, 1, 1)).shape[-1] // 2 for level in LEVELS}


def test_what_is_in_the_buffer_when_a_run_begins_counts(networks, expected, device):
    """The loop fills one buffer again and again: bound once, read every time."""
    from runtime.backends.fields.cuda import carry

    channels = 2 * channels_of(networks)[2]
    buffer = networks.estimator_input(2, (6, 7, 8))
    for seed in (1, 2):
        features = noise((6, 7, 8, channels), seed, element(networks))
        carry(device.upload(features), buffer)
        close(device.download(networks.residual(2, buffer)), expected.residual(2, features), networks)


def test_features_are_the_callers_own(networks, device):
    first = networks.features(device.upload(noise((16, 16, 16), 1)))
    before = {level: device.download(found) for level, found in first.items()}
    networks.features(device.upload(noise((16, 16, 16), 2)))
    for level in LEVELS:
        np.testing.assert_array_equal(device.download(first[level]), before[level])


def test_rest_gives_buffers_back_and_work_goes_on(networks, expected, device):
    image = noise((32, 32, 32))
    found = networks.features(device.upload(image))
    del found
    networks.rest()
    device.rest()
    close(device.download(networks.features(device.upload(image))[2]), expected.features(image)[2], networks)


def test_an_image_that_lies_badly_is_copied(networks, expected, device):
    from runtime.backends.cuda.memory import DeviceArray

    image = noise((16, 16, 16))
    wide = device.upload(np.concatenate([np.zeros(1, np.float32), image.ravel()]))
    odd = DeviceArray(device, wide.pointer + 4, image.shape, np.float32, owner=wide)
    close(device.download(networks.features(odd)[1]), expected.features(image)[1], networks)


def test_other_memory_than_an_estimator_input_is_not_read_askew(networks, device):
    channels = 2 * channels_of(networks)[1]
    with pytest.raises(ValueError, match="expected an estimator_input"):
        networks.residual(1, device.zeros((4, 4, 4, channels), element(networks)))


def test_the_backend_on_the_cpu_comes_to_the_same(networks, engine_dir, device):
    """In fp16 the two differ in the intermediate results that are rounded."""
    image = noise((16, 24, 32))
    there = OnnxRuntimeNetworks(load_engine_set(engine_dir), 2, networks.precision).features(image)
    limit = {"fp32": 2e-5, "fp16": 5e-3}[networks.precision]
    for level, found in networks.features(device.upload(image)).items():
        assert np.abs(device.download(found) - there[level]).max() <= limit * np.abs(there[level]).max()


def spoil(monkeypatch, graph, run):
    """Replace the run of a graph's session."""
    session = SimpleNamespace(io_binding=graph._session.io_binding, run_with_iobinding=run)
    monkeypatch.setattr(graph, "_session", session)


NO_PROVIDER = "CUDAExecutionProvider could not be started|cannot open shared object file"  # installed here, or not


class TestWhatCannotBeHad:
    """One-line errors, of the kind after which `auto` tries the next backend."""

    @pytest.fixture
    def opened(self, engine_dir, device):
        from runtime.backends.networks.onnxruntime_cuda import CudaOnnxRuntimeNetworks

        place = {"provider": CPU, "memory": "cpu"}
        return lambda **kinds: CudaOnnxRuntimeNetworks(load_engine_set(engine_dir), device, **{**place, **kinds})

    @pytest.fixture
    def module(self):
        return pytest.importorskip("runtime.backends.networks.onnxruntime_cuda")

    def test_an_onnxruntime_without_the_provider(self, opened, monkeypatch):
        from runtime.backends.networks import onnxruntime as networks_onnxruntime

        monkeypatch.setattr(networks_onnxruntime.onnxruntime, "get_available_providers", lambda: [CPU])
        line = r"is built without CUDAExecutionProvider.*pip install \"onnxruntime-gpu\["
        with pytest.raises(NotAvailableError, match=line):
            opened(provider="CUDAExecutionProvider")

    def test_a_missing_library_is_named(self, opened, monkeypatch):
        """For example libcublas: loading the provider's library reveals which."""
        from runtime.backends.networks import onnxruntime as networks_onnxruntime

        def load(path, *mode):
            raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")

        providers = ["CUDAExecutionProvider", CPU]
        monkeypatch.setattr(networks_onnxruntime.onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(networks_onnxruntime.onnxruntime, "preload_dlls", lambda: print("Failed to load ..."))
        monkeypatch.setattr(networks_onnxruntime.ctypes, "CDLL", load)
        with pytest.raises(NotAvailableError, match=r"cannot use the GPU \(libcublasLt.so.13: cannot open .*cuDNN 9"):
            opened(provider="CUDAExecutionProvider")

    def test_a_session_that_fell_back_to_the_cpu(self, opened, module, monkeypatch):
        """What ONNX Runtime does when the provider cannot start: a warning on stderr, and a session without it."""
        monkeypatch.setattr(module, "why_no_provider", lambda provider: None)
        monkeypatch.setattr(module, "open_session", lambda path, *_: open_session(path, session_options()))
        with pytest.raises(NotAvailableError, match=NO_PROVIDER):
            opened(provider="CUDAExecutionProvider")

    def test_a_provider_that_opens_and_cannot_run(self, opened, module, monkeypatch):
        """For example without cuDNN: a first small run reveals it, while `auto` can still go on."""
        message = (
            "Non-zero status code ... Status Message: cuDNN is unavailable: dlopen failed for libcudnn.so" + 999 * "x"
        )

        def session(path, options, providers):
            whole = open_session(path, session_options())
            return SimpleNamespace(
                get_providers=lambda: [providers[0][0], CPU],
                get_inputs=whole.get_inputs,
                io_binding=whole.io_binding,
                run_with_iobinding=fail,
            )

        def fail(*_):
            raise RuntimeError(message)

        monkeypatch.setattr(module, "open_session", session)
        with pytest.raises(
            NotAvailableError, match=r"cannot use the GPU \(cuDNN is unavailable: dlopen .*xxx\.\.\.\); "
        ) as refusal:
            opened()
        assert len(str(refusal.value)) < 700

    def test_nodes_are_not_left_to_the_cpu(self, opened, module, monkeypatch):
        """ONNX Runtime itself refuses to put a node on the CPU beside the GPU."""
        monkeypatch.setattr(module, "why_no_provider", lambda provider: None)

        def on_the_cpu(path, options, providers):
            (name, facts), *others = providers
            assert name == "CUDAExecutionProvider" and facts["user_compute_stream"] != "0" and not others
            return open_session(path, options, ())

        monkeypatch.setattr(module, "open_session", on_the_cpu)
        with pytest.raises(NotAvailableError, match=NO_PROVIDER):
            opened(provider="CUDAExecutionProvider")

    @pytest.mark.parametrize(
        "message",
        [
            "CUDA failure 2: out of memory ; GPU=0",
            "BFCArena: Failed to allocate memory for requested buffer of size 629145600",
            "Available memory of 12 is smaller than requested bytes of 34",
            "CUDNN_STATUS_ALLOC_FAILED",
        ],
    )
    def test_out_of_memory(self, opened, monkeypatch, device, message):
        """The run is repeated once after our pool's unused memory was freed, then the error is reported."""
        networks, held = opened(), []

        def run(*_):
            held.append(device._pool.held)
            raise RuntimeError(f"[ONNXRuntimeError] : 6 : {message}\nand more")

        buffer = networks.estimator_input(1, (4, 4, 4))
        spoil(monkeypatch, networks._graphs.estimators[1], run)
        device.empty((1000, 1000))  # freed at once, into the pool
        with pytest.raises(NotAvailableError, match=r"is out of memory: needs .* choose --precision fp16"):
            networks.residual(1, buffer)
        assert len(held) == 2 and held[1] < held[0]

    def test_any_other_failure_is_one_line(self, opened, device, monkeypatch):
        def run(*_):
            raise RuntimeError("CUDA failure 209:\n  no kernel image is available")

        networks = opened()
        spoil(monkeypatch, networks._graphs.extractor, run)
        with pytest.raises(NotAvailableError) as refusal:
            networks.features(device.upload(noise((16, 16, 16))))
        assert "(CUDA failure 209: no kernel image is available)" in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_a_set_without_fp16_graphs(self, engine_copy, device, module):
        import json

        path = engine_copy / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["engines_fp16"]
        path.write_text(json.dumps(sealed(manifest)))
        with pytest.raises(InputError, match="has graphs in fp32, not in fp16; export the set again"):
            module.CudaOnnxRuntimeNetworks(load_engine_set(engine_copy), device, "fp16", provider=CPU, memory="cpu")

    def test_close(self, opened):
        networks = opened()
        assert not networks.closed
        networks.close()
        networks.rest()
        assert networks.closed
