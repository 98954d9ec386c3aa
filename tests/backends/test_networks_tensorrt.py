"""The networks on a GPU with TensorRT, with stand-ins for the GPU and for TensorRT.

What runs here is ours: which plan is opened, what it is given, where its inputs and outputs lie. Arithmetic is ONNX
Runtime's, so results equal those of the CPU backend up to the rounding of feature maps.
"""

import json
import sys

import numpy as np
import pytest

from runtime.backends.cuda.gpu import GpuInfo
from runtime.backends.engine_set import ENGINES, load_engine_set, sealed
from runtime.backends.networks.onnxruntime import OnnxRuntimeNetworks
from runtime.backends.networks.tensorrt import open_plan
from runtime.errors import InputError, NotAvailableError
from runtime.loop.schedules import LEVELS
from tests.backends import fake_tensorrt
from tests.backends.host_gpu.gpu import REAL, open_host_device

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
SHAPE = (16, 24, 32)
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}  # of the largest value
pytestmark = pytest.mark.skipif(REAL, reason="plays the GPU and the library")


@pytest.fixture(scope="module")
def device():
    return open_host_device()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RPNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """Stand-ins for both packages."""
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, fake_tensorrt.fake_module(package))


@pytest.fixture
def gpu(device, monkeypatch):
    """The device as a GPU that TensorRT-RTX supports."""
    monkeypatch.setattr(device, "capability", (8, 9))
    return device


@pytest.fixture
def opened(engine_copy, gpu):
    """A function that opens networks on the copied set; the lines they print are in `opened.reported`."""

    def open_networks(target="tensorrt-rtx", precision="fp16"):
        from runtime.backends.networks.tensorrt import networks as networks_tensorrt

        kind = {"tensorrt-rtx": "TensorRtRtxNetworks", "tensorrt": "TensorRtNetworks"}[target]
        engine_set = load_engine_set(engine_copy)
        return getattr(networks_tensorrt, kind)(engine_set, gpu, precision, open_networks.reported.append)

    open_networks.reported = []
    return open_networks


def image(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def filled(networks, device, level, features):
    """Return the estimator's input with these features in it."""
    buffer = networks.estimator_input(level, features.shape[:3])
    assert buffer.contiguous and buffer.shape == features.shape
    content = np.ascontiguousarray(features, buffer.dtype)
    device.driver.upload(buffer.pointer, content.ctypes.data, content.nbytes)
    return buffer


def close(found, expected, precision) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.float32) - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("target", PACKAGES)
def test_the_same_as_on_the_cpu(opened, device, engine_copy, target, precision):
    networks, cpu = opened(target, precision), OnnxRuntimeNetworks(load_engine_set(engine_copy), 1, precision)
    for shape in (SHAPE, (24, 16, 16)):
        found, expected = networks.features(device.upload(image(shape))), cpu.features(image(shape))
        assert set(found) == set(LEVELS)
        for level in LEVELS:
            assert found[level].contiguous and found[level].dtype == {"fp16": np.float16, "fp32": np.float32}[precision]
            close(device.download(found[level]), expected[level], precision)
            features = np.concatenate([expected[level], expected[level][::-1]], axis=-1)
            residual = networks.residual(level, filled(networks, device, level, features))
            buffer = cpu.estimator_input(level, features.shape[:3])
            buffer[...] = features
            assert residual.dtype == np.float32 and residual.element_strides[-1] == np.prod(residual.shape[:3])
            close(device.download(residual), cpu.residual(level, buffer), precision)


def test_facts(opened, device):
    networks = opened("tensorrt", "fp32")
    assert (networks.library, networks.version, networks.precision) == ("tensorrt", "1.0", "fp32")
    assert networks.device == device.name and not networks.closed
    networks.close()
    networks.close()
    assert networks.closed


def test_features_stay_what_they_are(opened, device):
    networks = opened()
    first = networks.features(device.upload(image(seed=1)))
    before = {level: device.download(features) for level, features in first.items()}
    networks.features(device.upload(image(seed=2)))
    for level in LEVELS:
        np.testing.assert_array_equal(device.download(first[level]), before[level])


def test_after_a_rest(opened, device):
    networks = opened()
    before = device.download(networks.features(device.upload(image()))[1])
    networks.rest()
    np.testing.assert_array_equal(device.download(networks.features(device.upload(image()))[1]), before)


def test_scratch_memory_is_for_the_size_at_hand_and_shared(opened, device, monkeypatch):
    """Not for the largest size the plans serve, which would be GBs."""
    networks, sizes = opened(), []
    empty = device.empty
    monkeypatch.setattr(
        device, "empty", lambda shape, dtype=np.float32: sizes.append((shape, dtype)) or empty(shape, dtype)
    )
    for seed in (1, 2):
        features = networks.features(device.upload(image(seed=seed)))
        networks.residual(1, filled(networks, device, 1, np.concatenate([device.download(features[1])] * 2, -1)))
    scratch = [shape for shape, dtype in sizes if dtype == np.uint8]
    assert scratch == [(16 * fake_tensorrt.SCRATCH * int(np.prod(SHAPE)),)]


def test_an_image_of_another_library_that_is_not_aligned(opened, device):
    from runtime.backends.cuda.memory import DeviceArray

    networks, whole = opened(), device.empty((int(np.prod(SHAPE)) + 1,))
    content = image()
    device.driver.upload(whole.pointer + 4, content.ctypes.data, content.nbytes)
    moved = DeviceArray(device, whole.pointer + 4, SHAPE, np.float32, owner=whole)
    expected = networks.features(device.upload(content))
    np.testing.assert_array_equal(device.download(networks.features(moved)[1]), device.download(expected[1]))


class TestPlans:
    """Plans are built once, and again when they no longer fit; builds are reported in one line."""

    def entries(self, engine_copy):
        return json.loads((engine_copy / "plans" / "plans.json").read_text())["plans"]

    def test_built_once(self, opened, engine_copy):
        opened()
        assert len(opened.reported) == 1 and "\n" not in opened.reported[0]
        assert (
            "build 5 of 5 engines for TensorRT-RTX 1.0 in fp16 (none built yet; 16,16,16 to 256,256,256)"
            in opened.reported[0]
        )
        assert {entry["engine"] for entry in self.entries(engine_copy)} == set(ENGINES)
        assert {(*entry["sms"], entry["gpu"]) for entry in self.entries(engine_copy)} == {(89, "")}
        opened()
        assert len(opened.reported) == 1

    def test_strongly_typed_for_this_gpu_without_tf32(self, opened, engine_copy):
        opened(precision="fp32")
        for entry in self.entries(engine_copy):
            header = fake_tensorrt.header((engine_copy / "plans" / entry["file"]).read_bytes())
            assert header["typed"] and not header["tf32"] and header["capabilities"] == ["SM89"]

    def test_those_built_ahead_are_used(self, opened, engine_copy):
        from runtime.backends.networks.tensorrt.build import BuildOptions, build_plans

        build_plans(engine_copy, BuildOptions("tensorrt-rtx", (75, 89), ("fp16",)))
        opened()
        assert opened.reported == []
        opened(precision="fp32")
        assert len(opened.reported) == 1

    def test_for_another_gpu(self, opened, device, engine_copy, monkeypatch):
        opened()
        monkeypatch.setattr(device, "capability", (12, 0))
        opened()
        assert "(built for SM 89, not 120; " in opened.reported[1] and len(self.entries(engine_copy)) == 10

    def test_tensorrt_is_tied_to_the_gpu(self, opened, device, engine_copy, monkeypatch):
        opened("tensorrt")
        assert {entry["gpu"] for entry in self.entries(engine_copy)} == {device.name}
        monkeypatch.setattr(device, "name", "another GPU")
        opened("tensorrt")
        assert "(none built yet; " in opened.reported[1]

    def test_by_another_version(self, opened, engine_copy, monkeypatch):
        opened()
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.fake_module("tensorrt_rtx", "1.1"))
        opened()
        assert "(built by tensorrt-rtx 1.0, installed is 1.1; " in opened.reported[1]
        assert len(self.entries(engine_copy)) == len(list((engine_copy / "plans").glob("*.plan"))) == 5

    def test_from_another_graph(self, opened, engine_copy):
        opened()
        listing = engine_copy / "plans" / "plans.json"
        graph = load_engine_set(engine_copy).graph_hash("estimator_level1", "fp16")
        listing.write_text(listing.read_text().replace(graph, "0" * 64))
        opened()
        assert "build 1 of 5 engines" in opened.reported[1] and "(built from another graph; " in opened.reported[1]

    def test_a_damaged_one_is_never_opened(self, opened, engine_copy, monkeypatch):
        opened()
        file = next(e["file"] for e in self.entries(engine_copy) if e["engine"] == "estimator_level3")
        (engine_copy / "plans" / file).write_bytes(fake_tensorrt.MAGIC + b"evil")
        seen, whole = [], fake_tensorrt.Runtime.deserialize_cuda_engine
        monkeypatch.setattr(
            fake_tensorrt.Runtime, "deserialize_cuda_engine", lambda self, plan: seen.append(plan) or whole(self, plan)
        )
        opened()
        assert f"({file} is missing or damaged; " in opened.reported[1]
        assert len(seen) == 5 and not any(b"evil" in plan for plan in seen)

    def test_a_size_outside_the_profile_gets_plans_of_its_own(self, opened, device, engine_copy):
        networks = opened()
        long = (264, 16, 16)
        assert networks.features(device.upload(image(long)))[1].shape == (*long, 8)
        assert "(built for 16,16,16 to 256,256,256; 264,16,16)" in opened.reported[1]
        assert networks.features(device.upload(image()))[1].shape == (*SHAPE, 8)
        assert len(opened.reported) == 2 and len(self.entries(engine_copy)) == 10

    def test_a_set_that_cannot_be_written(self, opened, engine_copy, cache):
        (engine_copy / "plans").write_text("a file where the folder would be")
        opened()
        opened()
        assert len(opened.reported) == 1 and list(cache.glob("rpnet-plans/*/*.plan"))

    def test_kernels_compiled_for_the_gpu_are_kept(self, opened, device, cache):
        networks = opened()
        networks.features(device.upload(image()))
        networks.close()
        (path,) = (cache / "rpnet-tensorrt").glob("kernels.*")
        assert str((1, 1, *SHAPE)).encode() in path.read_bytes()
        again = opened()
        again.features(device.upload(image()))
        before = path.stat().st_mtime_ns
        again.close()
        assert path.stat().st_mtime_ns == before

    def test_a_cache_of_kernels_that_fails_costs_time_only(self, opened, device, monkeypatch):
        def broken(*_):
            raise RuntimeError("no")

        monkeypatch.setattr(fake_tensorrt.Blob, "serialize", broken)
        monkeypatch.setattr(fake_tensorrt.RuntimeConfig, "create_runtime_cache", broken)
        networks = opened()
        networks.features(device.upload(image()))
        networks.close()


class TestGraphs:
    """TensorRT's work is captured once it repeats; TensorRT-RTX captures by itself."""

    @pytest.fixture
    def captured(self, device, monkeypatch):
        """Return the captured runs, which are executed only when the graph is launched."""
        works = []
        monkeypatch.setattr(
            device.driver, "capture", lambda work: works.append(work) or fake_tensorrt.capture(work), raising=False
        )
        return works

    def residuals(self, networks, device, buffers):
        return [device.download(networks.residual(1, buffer)) for buffer in buffers]

    def buffer(self, networks, device, seed):
        networks.features(device.upload(image()))
        features = np.random.default_rng(seed).random((*SHAPE, 16), np.float32)
        return filled(networks, device, 1, features)

    def test_what_repeats_is_captured_and_right(self, opened, device, captured):
        networks = opened("tensorrt")
        one, two = self.buffer(networks, device, 1), self.buffer(networks, device, 2)
        first = self.residuals(networks, device, (one, two))
        assert captured == []
        again = self.residuals(networks, device, (one, two, one, two, two, one, two))
        assert len(captured) == 2
        for found, which in zip(again, (0, 1, 0, 1, 1, 0, 1), strict=True):
            np.testing.assert_array_equal(found, first[which])

    def test_another_size_is_captured_anew(self, opened, device, captured):
        networks = opened("tensorrt")
        one = self.buffer(networks, device, 1)
        first = self.residuals(networks, device, (one, one, one))
        networks.features(device.upload(image((24, 16, 16))))
        networks.features(device.upload(image()))
        again = self.residuals(networks, device, (one, one, one))
        assert len(captured) == 2
        np.testing.assert_array_equal(again, first)

    def test_where_capturing_fails_it_is_sent_as_it_is(self, opened, device, monkeypatch):
        def refuses(work):
            tried.append(work)
            raise RuntimeError("operation not permitted when stream is capturing")

        tried: list = []
        monkeypatch.setattr(device.driver, "capture", refuses, raising=False)
        networks = opened("tensorrt")
        one = self.buffer(networks, device, 1)
        first, *others = self.residuals(networks, device, [one] * 4)
        assert len(tried) == 1
        for other in others:
            np.testing.assert_array_equal(other, first)

    def test_tensorrt_rtx_does_so_itself_but_for_the_extractor(self, opened, device, captured, monkeypatch):
        strategies = []
        whole = fake_tensorrt.Engine.create_execution_context

        def watched(engine, config):
            strategies.append((config.cuda_graph_strategy.name, "image" in engine.tensors))
            return whole(engine, config)

        monkeypatch.setattr(fake_tensorrt.Engine, "create_execution_context", watched)
        networks = opened()
        self.residuals(networks, device, [self.buffer(networks, device, 1)] * 4)
        assert captured == [] and sorted(strategies) == [("DISABLED", True)] + [("WHOLE_GRAPH_CAPTURE", False)] * 4


class TestRefusals:
    """One line each; errors that another machine would not have are `NotAvailableError`, so that `auto` goes on."""

    def test_a_gpu_that_is_not_served(self):
        """Before it is started."""
        from runtime.backends.networks.tensorrt.networks import TensorRtNetworks, TensorRtRtxNetworks

        gpu = GpuInfo("H100", (9, 0), 1, (13, 0))
        line = r"--backend: TensorRT-RTX 1.0 supports compute capabilities .*, not 9.0 \(H100\)"
        with pytest.raises(NotAvailableError, match=line):
            TensorRtRtxNetworks.check_gpu(gpu, "fp16")
        TensorRtNetworks.check_gpu(gpu, "fp16")

    def test_fp32_on_turing(self):
        from runtime.backends.networks.tensorrt.networks import TensorRtRtxNetworks

        gpu = GpuInfo("RTX 2080", (7, 5), 1, (13, 0))
        with pytest.raises(NotAvailableError, match=r"no fp32 3-D convolution .* \(Turing\); use --precision fp16"):
            TensorRtRtxNetworks.check_gpu(gpu, "fp32")
        TensorRtRtxNetworks.check_gpu(gpu, "fp16")

    def test_a_library_that_is_missing(self, opened, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        line = r"the package tensorrt_rtx .*; pip install -r requirements-gpu.txt"
        with pytest.raises(NotAvailableError, match=line):
            opened()

    def test_a_plan_the_library_does_not_open(self, opened, monkeypatch):
        def refuses(runtime, plan):
            runtime._logger.log(fake_tensorrt.Severity.ERROR, "Error Code 6: The engine needs a newer\nCUDA driver")

        opened()
        monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", refuses)
        line = r"cannot be opened on .*: .* needs a newer CUDA driver; update the GPU's"
        with pytest.raises(NotAvailableError, match=line):
            opened()

    def test_a_plan_with_another_layout_than_it_says(self, opened, monkeypatch):
        monkeypatch.setattr(
            fake_tensorrt.Engine, "get_tensor_format", lambda engine, name: fake_tensorrt.TensorFormat.LINEAR
        )
        with pytest.raises(InputError, match=r"the plan has .*LINEAR.*, expected .*DHWC8"):
            opened()

    def test_out_of_memory_when_opening(self, opened, monkeypatch):
        def refuses(runtime, plan):
            runtime._logger.log(fake_tensorrt.Severity.ERROR, "Error Code 2: OutOfMemory (out of memory)")

        monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", refuses)
        with pytest.raises(NotAvailableError, match=r"--backend: .* is out of memory: .*; close other programs"):
            opened()

    def test_out_of_memory_when_running(self, opened, device, monkeypatch):
        def refuses(context, stream):
            context._engine.logger.log(fake_tensorrt.Severity.ERROR, "Cuda Runtime (out of memory)")
            return False

        networks = opened()
        monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", refuses)
        with pytest.raises(NotAvailableError, match="is out of memory"):
            networks.features(device.upload(image()))

    def test_what_the_library_refuses_to_run(self, opened, device, monkeypatch):
        def refuses(context, stream):
            context._engine.logger.log(fake_tensorrt.Severity.ERROR, "Error Code 1: Cuda Runtime (illegal\n access)")
            return False

        networks = opened()
        monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", refuses)
        with pytest.raises(InputError, match=r"TensorRT-RTX 1.0, feature_extractor: Error Code 1: .*illegal access"):
            networks.features(device.upload(image()))

    def test_channels_that_fp16_would_pad(self, opened, engine_copy):
        path = engine_copy / "manifest.json"
        manifest = json.loads(path.read_text())
        next(entry for entry in manifest["levels"] if entry["level"] == 1)["channels"] = 12
        path.write_text(json.dumps(sealed(manifest)))
        with pytest.raises(
            InputError, match=r"multiples of 8, this network has \{1: 12\} by level; use --precision fp32"
        ):
            opened()


def test_captured_graphs_are_few(monkeypatch, opened, device):
    """Each fixed side has its own input; graphs of those that are gone are dropped."""
    monkeypatch.setattr(device.driver, "capture", fake_tensorrt.capture, raising=False)
    networks = opened("tensorrt")
    networks.features(device.upload(image()))
    buffers = [networks.estimator_input(4, (2, 3, 4)) for _ in range(open_plan.MOST_GRAPHS + 3)]
    for buffer in buffers:
        device.driver.clear(buffer.pointer, buffer.nbytes)
        for _ in range(2):
            networks.residual(4, buffer)
    assert len(networks._plans["estimator_level4"]._graphs) == open_plan.MOST_GRAPHS
