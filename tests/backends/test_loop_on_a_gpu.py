"""The whole loop on a GPU, end to end: the same flow and the same decisions as on the CPU.

The GPU is the stand-in of tests/backends/host_gpu, with the real device layer and the real kernels. The engines are
run by ONNX Runtime's CPU provider, where a GPU has its CUDA provider and TensorRT. With RPNET_TEST_GPU=1 GPU and
libraries are this computer's.
"""

import importlib.machinery
import shutil
import sys

import numpy as np
import pytest

import runtime
from runtime.backends import choice, registry
from runtime.backends.engine_set import load_engine_set
from runtime.backends.engines import SHIPPED
from runtime.backends.parity import example_pair
from runtime.errors import InputError, NotAvailableError
from runtime.loop import iterstop
from runtime.loop.stop_rules import ON_STOP, parse_schedule
from runtime.registration.arrays import register_arrays
from runtime.registration.batch.concurrent import register_many
from tests.backends import fake_tensorrt
from tests.backends.host_gpu import gpu

SHAPE = (24, 32, 16)
SCHEDULES = ("iterstop", "1,1,1,1", "2,0,1,3", "cascade:2")


@pytest.fixture(scope="module", params=["cuda", "tensorrt-rtx"])
def on_gpu(request, tmp_path_factory):
    """Engines of each GPU backend in fp32; plans are built in a copy of the set."""
    gpu.open_host_device()
    folder = shutil.copytree(SHIPPED, tmp_path_factory.mktemp("set") / "engines", dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        gpu.seen(patch)
        if not gpu.REAL:
            played(patch)
        try:
            engines = runtime.open_engines(folder, request.param, precision="fp32")
        except NotAvailableError as error:
            pytest.skip(str(error))
        with engines:
            yield engines


def played(patch):
    """ONNX Runtime's CPU provider reads and writes the stand-in's memory, which is the host's."""
    from runtime.backends.networks import onnxruntime_cuda

    whole = onnxruntime_cuda.CudaOnnxRuntimeNetworks

    class OnTheProcessor(whole):
        def __init__(self, *arguments):
            super().__init__(*arguments, provider="CPUExecutionProvider", memory="cpu")

    patch.setattr(onnxruntime_cuda, whole.__name__, OnTheProcessor)
    patch.setattr(registry, "_is_installed", lambda distribution: True)
    library = fake_tensorrt.fake_module("tensorrt_rtx")
    library.__spec__ = importlib.machinery.ModuleSpec("tensorrt_rtx", None)
    patch.setitem(sys.modules, "tensorrt_rtx", library)


@pytest.fixture(scope="module")
def on_processor():
    with runtime.open_engines(backend="onnxruntime") as engines:
        yield engines


@pytest.fixture
def engine_set():
    return load_engine_set(SHIPPED)


@pytest.fixture(scope="module")
def pair():
    return example_pair(SHAPE)


def schedule(text, similarity="ncc", **options):
    return parse_schedule(text, **({"similarity": similarity, **options} if text == "iterstop" else {}))


@pytest.mark.parametrize("text", SCHEDULES)
def test_the_same_flow_as_on_the_processor(on_gpu, on_processor, pair, text):
    found, expected = (register_arrays(engines, *pair, schedule(text)) for engines in (on_gpu, on_processor))
    assert found.counts == expected.counts
    assert found.flow.shape == (3, *SHAPE) and isinstance(found.flow, np.ndarray)
    np.testing.assert_allclose(found.flow, expected.flow, atol=1e-3)
    assert found.similarity == pytest.approx(expected.similarity, abs=1e-6)


@pytest.mark.parametrize("text", ["iterstop", "cascade:2"])
def test_smoothed_as_on_the_processor(on_gpu, on_processor, pair, text):
    found, expected = (register_arrays(side, *pair, schedule(text), smooth=1.5) for side in (on_gpu, on_processor))
    assert found.counts == expected.counts
    np.testing.assert_allclose(found.flow, expected.flow, atol=1e-3)
    assert np.abs(found.flow - register_arrays(on_gpu, *pair, schedule(text)).flow).max() > 0.01


@pytest.mark.parametrize("similarity", ["ncc", "lncc", "mse"])
@pytest.mark.parametrize("on_stop", ON_STOP)
def test_the_same_decisions(on_gpu, on_processor, pair, similarity, on_stop):
    rule = schedule("iterstop", similarity, on_stop=on_stop)
    found, expected = (register_arrays(engines, *pair, rule, similarity) for engines in (on_gpu, on_processor))
    assert found.counts == expected.counts
    for ours, theirs in zip(found.passes[0], expected.passes[0], strict=True):
        assert ours.reason == theirs.reason
        for decision, other in zip(ours.decisions, theirs.decisions, strict=True):
            assert decision.after == pytest.approx(other.after, abs=1e-5)


def test_again_is_the_same_bit_for_bit(on_gpu, pair):
    first, again = (register_arrays(on_gpu, *pair, schedule("iterstop")) for _ in range(2))
    np.testing.assert_array_equal(first.flow, again.flow)
    assert first.similarity == again.similarity


def test_arrays_on_the_gpu_stay_there(on_gpu, pair):
    """A caller's arrays are read without a copy, and the flow is returned on their device."""
    device = on_gpu.fields.clock()
    with device.current():
        found = register_arrays(on_gpu, *(device.upload(image) for image in pair), schedule("iterstop"))
        assert found.flow.__cuda_array_interface__["shape"] == (3, *SHAPE)
        flow = device.download(found.flow)
    np.testing.assert_array_equal(flow, register_arrays(on_gpu, *pair, schedule("iterstop")).flow)


def test_arrays_on_a_gpu_are_not_for_engines_on_the_processor(on_gpu, on_processor, pair):
    device = on_gpu.fields.clock()
    with device.current(), pytest.raises(InputError, match="fixed image: is in a GPU's memory"):
        register_arrays(on_processor, device.upload(pair[0]), pair[1])


def test_images_that_cannot_be_registered_are_refused(on_gpu, pair):
    fixed, moving = pair
    spoilt = moving.copy()
    spoilt[3, 4, 5] = np.nan
    for image, line in (
        (spoilt, "moving image: has NaN or Inf"),
        (np.zeros_like(moving), r"moving image: is constant \(0\)"),
        (2 * moving, "moving image: got intensities"),
        (moving[:-1], "images: got shapes"),
    ):
        with pytest.raises(InputError, match=line):
            register_arrays(on_gpu, fixed, image, schedule("1,1,1,1"))


def test_only_decisions_wait_for_the_gpu(on_gpu, pair, monkeypatch):
    """Between the first check of the images and the download, the host waits once for each similarity it needs."""
    driver = type(on_gpu.fields.clock().driver)
    waits = {"wait": 0, "wait_for_all": 0, "synchronize": 0, "download": 0}

    def counted(name, whole):
        def wrapped(*arguments):
            waits[name] += 1
            return whole(*arguments)

        return wrapped

    for name in waits:
        monkeypatch.setattr(driver, name, counted(name, getattr(driver, name)))
    fields = on_gpu.fields
    with on_gpu.running():
        side = on_gpu.fixed_side(fields.to_device(pair[0]), "ncc")
        engine_pair = side.pair(fields.to_device(pair[1]))
        waits.update(dict.fromkeys(waits, 0))
        found = iterstop.run(engine_pair, schedule("iterstop"))
    assert waits["download"] == waits["synchronize"] == waits["wait_for_all"] == 0
    assert waits["wait"] == sum(len(trace.decisions) for trace in found.passes[0])


def test_several_pairs_in_flight_give_what_each_gives_alone(on_gpu, pair):
    fixed, moving = pair
    pairs = [(fixed, moving), (moving, fixed), (fixed, np.clip(1.1 * moving, 0, 1)), (fixed, moving)]
    choice = {"engine_dir": on_gpu.engine_set.folder, "backend": on_gpu.backend, "precision": "fp32"}
    found = list(register_many(iter(pairs), **choice, in_flight=2))
    for result, images in zip(found, pairs, strict=True):
        alone = register_arrays(on_gpu, *images, schedule("iterstop"))
        np.testing.assert_array_equal(result.flow, alone.flow)
        assert result.counts == alone.counts


def test_a_pair_that_fails_ends_the_series(pair):
    results = register_many([pair, (pair[0], np.zeros(SHAPE, np.float32)), pair], backend="onnxruntime")
    assert next(results).counts
    with pytest.raises(InputError, match="moving image: is constant"):
        next(results)
    with pytest.raises(InputError, match="in_flight: got 0, expected 1 to 16 pairs at a time"):
        next(register_many([pair], in_flight=0))


class TestChoice:
    def test_a_gpu_comes_first(self, on_gpu):
        """The installed packages decide; `on_gpu` makes all count as installed."""
        name, reason = choice.choose_backend("auto", on_gpu.engine_set)
        assert registry.BACKENDS[name].gpu and reason.startswith("auto: ")

    def test_auto_goes_on_where_a_gpu_cannot_be_used_and_says_why(self, on_gpu, monkeypatch):
        def refuse(*arguments):
            raise NotAvailableError("--backend: the GPU is busy; wait")

        monkeypatch.setattr("runtime.backends.cuda.open_device.open_device", refuse)
        with runtime.open_engines() as engines:
            assert not registry.BACKENDS[engines.backend].gpu
            assert "the GPU is busy; wait" in engines.reason
        with pytest.raises(NotAvailableError, match="--backend: the GPU is busy; wait"):
            runtime.open_engines(backend=on_gpu.backend)

    def test_what_computes_something_else_on_the_gpu_is_not_taken(self, on_gpu, monkeypatch, tmp_path):
        """The self-test: before any scan, the flow of a small pair is compared with the CPU's, once per GPU."""
        from runtime.backends import self_test
        from runtime.backends.fields import cuda as fields_cuda

        folder, reported = on_gpu.engine_set.folder, []
        monkeypatch.setattr(self_test, "cache_folder", lambda part: tmp_path)
        with runtime.open_engines(folder, on_gpu.backend, precision="fp32", progress=reported.append):
            assert sum(line.startswith("test ") for line in reported) == 1
        with runtime.open_engines(folder, on_gpu.backend, precision="fp32", progress=reported.append):
            assert sum(line.startswith("test ") for line in reported) == 1
        (record,) = (tmp_path / "rpnet-cards").iterdir()
        record.unlink()
        monkeypatch.setattr(fields_cuda.CudaFields, "compose", lambda self, flow, residual: flow)
        line = r"gives different results on .* than on the CPU: its flow differs by .* voxel \(largest\), allowed 0.01"
        with pytest.raises(NotAvailableError, match=line):
            runtime.open_engines(folder, on_gpu.backend, precision="fp32")
        assert not list((tmp_path / "rpnet-cards").iterdir())

    def test_what_goes_wrong_in_opening_is_no_reason_to_stop(self, on_gpu, monkeypatch):
        """For example, a library cannot build a graph for this GPU: the same set runs on another backend."""
        from runtime.backends import self_test

        def refuse(*arguments):
            raise InputError("--backend: cannot build it")

        monkeypatch.setattr(self_test, "self_test", refuse)
        with runtime.open_engines(on_gpu.engine_set.folder) as engines:
            assert not registry.BACKENDS[engines.backend].gpu and "cannot build it" in engines.reason

    @pytest.mark.parametrize("name", [name for name, backend in registry.BACKENDS.items() if backend.gpu])
    def test_without_a_gpu_it_is_refused_by_name(self, engine_set, monkeypatch, name):
        monkeypatch.setattr(registry, "find_gpu", lambda: "this computer has no NVIDIA driver")
        line = f"--backend: {name} needs an NVIDIA GPU, but this computer has no NVIDIA driver; use --backend auto"
        with pytest.raises(NotAvailableError, match=line):
            choice.choose_backend(name, engine_set)

    def test_auto_names_what_it_passed_by_once(self, engine_set, monkeypatch):
        monkeypatch.setattr(registry, "find_gpu", lambda: "this computer has no NVIDIA driver")
        name, reason = choice.choose_backend("auto", engine_set)
        assert not registry.BACKENDS[name].gpu
        assert reason.count("this computer has no NVIDIA driver") == 1 and "tensorrt" not in reason
