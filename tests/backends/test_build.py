"""Plans: for which GPUs they are built, and that only listed, unchanged and current plans are opened."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from runtime.backends.engine_set import ENGINES, EXTRACTOR, load_engine_set
from runtime.backends.networks.tensorrt import plans
from runtime.backends.networks.tensorrt.build import (
    BuildOptions,
    build_plans,
    parse_precisions,
    parse_profile,
    parse_sms,
)
from runtime.backends.networks.tensorrt.plans import ORDINARY, PlanSpec, PlanStore, Profile, plan_specs, tensor_formats
from runtime.backends.registry import BACKENDS
from runtime.errors import InputError, NotAvailableError
from runtime.host.cache_folder import kept

SHAPE = (160, 192, 160)
CAPABILITIES = (75, 80, 86, 89, 120)
SPEC = PlanSpec("estimator_level1", "a" * 64, "fp16", "tensorrt-rtx", "1.7", (75, 89), "", ORDINARY)
WANTED = dataclasses.replace(SPEC, sms=(89,))
change = dataclasses.replace


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RPNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path, cache) -> PlanStore:
    return PlanStore(tmp_path)


@pytest.fixture(scope="module")
def library():
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    from runtime.backends.networks.tensorrt.library import open_library

    return open_library("tensorrt-rtx")


def listing(folder: Path) -> list[dict]:
    return json.loads((folder / "plans" / "plans.json").read_text())["plans"]


class TestProfile:
    def test_it_holds_what_lies_between_along_every_axis(self):
        assert ORDINARY.holds((16, 256, 160))
        assert not ORDINARY.holds((8, 256, 160)) and not ORDINARY.holds((16, 264, 160))
        assert Profile.only(SHAPE).holds(SHAPE) and not Profile.only(SHAPE).holds((160, 192, 168))

    def test_a_level_is_coarser(self):
        assert change(SPEC, engine="estimator_level4").scale == 8
        assert Profile.only(SHAPE).at(8) == Profile.only((20, 24, 20))

    @pytest.mark.parametrize("text", ["16,16,16", "16,16 16,16 16,16", "a b c", "16,16,16 32,32,32"])
    def test_three_sizes_in_words(self, text):
        assert parse_profile("16,16,16 160,192,160 256,256,256") == ORDINARY == parse_profile(None)
        with pytest.raises(InputError, match=r"--shapes: got '.*', expected smallest, usual and largest"):
            parse_profile(text)

    def test_words_of_the_command(self):
        assert parse_sms("89,75") == (75, 89) and parse_sms(None) == ()
        assert parse_precisions(("all",)) == ("fp16", "fp32") and parse_precisions(("fp16", "fp16")) == ("fp16",)
        with pytest.raises(InputError, match=r"--sm: got '8[.]9', expected compute capabilities"):
            parse_sms("8.9")


class TestStore:
    def test_what_is_kept_is_found_again(self, store, tmp_path):
        folder, _ = store.keep([(SPEC, b"plan")])
        plan, content = store.find(WANTED, SHAPE)
        assert folder == tmp_path / "plans" and content == b"plan" and plan.spec == SPEC
        assert plan.sha256[:8] in plan.path.name

    @pytest.mark.parametrize(
        "wanted, shape, reason",
        [
            (change(WANTED, engine="estimator_level2"), SHAPE, "none built yet"),
            (change(WANTED, precision="fp32"), SHAPE, "none built yet"),
            (change(WANTED, target="tensorrt"), SHAPE, "none built yet"),
            (change(WANTED, gpu="RTX 4090"), SHAPE, "none built yet"),
            (change(WANTED, graph="b" * 64), SHAPE, "built from another graph"),
            (change(WANTED, version="1.8"), SHAPE, "built by tensorrt-rtx 1.7, installed is 1.8"),
            (change(WANTED, sms=(86,)), SHAPE, "built for SM 75, 89, not 86"),
            (WANTED, (264, 192, 160), "built for 16,16,16 to 256,256,256"),
        ],
    )
    def test_what_does_not_fit_is_not_found_and_why(self, store, wanted, shape, reason):
        store.keep([(SPEC, b"plan")])
        assert store.find(wanted, shape) == reason

    def test_another_memory_layout(self, store, monkeypatch):
        store.keep([(SPEC, b"plan")])
        monkeypatch.setitem(plans.CHANNELS_LAST, "fp16", "LINEAR")
        assert store.find(WANTED, SHAPE) == "built for another memory layout"

    def test_any_size_will_do_where_none_is_asked_for_and_the_closest_is_preferred(self, store):
        store.keep([(change(SPEC, profile=Profile.only((32, 32, 32))), b"small")])
        assert store.find(WANTED)[1] == b"small"
        store.keep([(SPEC, b"any"), (change(SPEC, profile=Profile.only((64, 64, 64))), b"fixed")])
        assert store.find(WANTED, (64, 64, 64))[1] == b"fixed"
        assert store.find(WANTED, (64, 64, 72))[1] == b"any"

    def test_a_changed_file_is_not_opened(self, store, tmp_path):
        store.keep([(SPEC, b"plan")])
        path = store.find(WANTED)[0].path
        path.write_bytes(b"evil")
        assert store.find(WANTED) == f"{path.name} is missing or damaged"
        path.unlink()
        assert store.find(WANTED) == f"{path.name} is missing or damaged"

    def test_a_file_that_is_not_listed_is_not_opened(self, store, tmp_path):
        """A plan is native code: a file of the right name that is not listed must not be opened."""
        store.keep([(SPEC, b"plan")])
        path = store.find(WANTED)[0].path
        (tmp_path / "plans" / "plans.json").unlink()
        assert path.exists() and store.find(WANTED) == "none built yet"

    def test_a_listing_names_files_of_its_folder_only(self, store, tmp_path):
        store.keep([(SPEC, b"plan")])
        path = store.find(WANTED)[0].path
        path.rename(tmp_path / path.name)
        entry = listing(tmp_path)[0] | {"file": f"../{path.name}"}
        text = json.dumps({"format": "rpnet-plans", "version": 1, "plans": [entry]})
        (tmp_path / "plans" / "plans.json").write_text(text)
        assert "is missing or damaged" in store.find(WANTED)

    @pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', '{"format": "rpnet-plans", "version": 2}'])
    def test_a_listing_that_cannot_be_read_lists_nothing(self, store, tmp_path, text):
        (tmp_path / "plans").mkdir()
        (tmp_path / "plans" / "plans.json").write_text(text)
        assert store.find(WANTED) == "none built yet"
        store.keep([(SPEC, b"plan")])
        assert store.find(WANTED)[1] == b"plan"

    def test_outdated_plans_go_when_they_are_replaced_and_others_stay(self, store, tmp_path):
        other = change(SPEC, engine="estimator_level2")
        store.keep([(SPEC, b"old"), (other, b"other"), (change(SPEC, profile=Profile.only(SHAPE)), b"old too")])
        _, replaced = store.keep([(change(SPEC, graph="b" * 64), b"new")])
        assert len(replaced) == 2 and all("built from another graph" in line for line in replaced)
        assert [entry["engine"] for entry in listing(tmp_path)] == ["estimator_level2", "estimator_level1"]
        assert len(list((tmp_path / "plans").glob("*.plan"))) == 2
        assert store.find(change(WANTED, graph="b" * 64))[1] == b"new"

    def test_a_plan_for_more_gpus_takes_the_place_of_one_for_fewer(self, store, tmp_path):
        store.keep([(change(SPEC, sms=(89,)), b"one")])
        store.keep([(SPEC, b"two")])
        store.keep([(change(SPEC, sms=(120,)), b"another")])
        assert [entry["sms"] for entry in listing(tmp_path)] == [[75, 89], [120]]

    def test_the_same_content_again(self, store):
        for _ in range(2):
            store.keep([(SPEC, b"plan")])
        assert store.find(WANTED)[1] == b"plan"

    def test_where_the_set_cannot_be_written_the_cache_folder_is(self, store, tmp_path, cache):
        (tmp_path / "plans").write_text("a file where the folder would be")
        folder, _ = store.keep([(SPEC, b"plan")])
        assert cache in folder.parents and store.find(WANTED)[1] == b"plan"
        (tmp_path / "other").mkdir()
        assert PlanStore(tmp_path / "other").find(WANTED) == "none built yet"

    def test_where_nothing_can_be_written(self, store, monkeypatch):
        monkeypatch.setattr(plans, "_replace", full_disk)
        with pytest.raises(InputError, match=r"no folder for built engines can be written \(No space left"):
            store.keep([(SPEC, b"plan")])

    def test_what_is_written_half_is_not_listed(self, store, tmp_path, monkeypatch):
        store.keep([(SPEC, b"old")])
        monkeypatch.setattr(plans, "write_text", full_disk)
        with pytest.raises(InputError):
            store.keep([(change(SPEC, version="1.8"), b"new")])
        monkeypatch.undo()
        assert PlanStore(tmp_path).find(WANTED)[1] == b"old"

    def test_many_at_once_lose_nothing(self, store, tmp_path):
        specs = [change(SPEC, gpu=f"GPU {n}") for n in range(12)]
        threads = [threading.Thread(target=store.keep, args=[[(spec, spec.gpu.encode())]]) for spec in specs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {entry["gpu"] for entry in listing(tmp_path)} == {spec.gpu for spec in specs}
        assert all(store.find(change(spec, sms=(75,)))[1] == spec.gpu.encode() for spec in specs)


def full_disk(*_):
    raise OSError(28, "No space left on device")


class TestTensorRtRtx:
    """The shipped set, built for every GPU that TensorRT-RTX supports. Plans cannot be opened without a GPU."""

    def specs(self, shipped, library, precision, sms, profile=ORDINARY):
        return plan_specs(load_engine_set(shipped), precision, library, sms, "", profile)

    def built(self, shipped, library, spec) -> bytes:
        return library.build(load_engine_set(shipped).path(spec.engine, spec.precision).read_bytes(), spec)

    def test_gpus(self, library):
        assert set(CAPABILITIES) <= set(library.sms)
        assert library.incompatibility(89, "fp32") is None and library.incompatibility(75, "fp16") is None
        reason = library.incompatibility(75, "fp32")
        assert "no fp32 3-D convolution for compute capability 7.5 (Turing); use --precision fp16" in reason
        assert "supports compute capabilities 7.5, 8.0, 8.6, 8.9" in library.incompatibility(90, "fp16")

    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    @pytest.mark.parametrize("sm", CAPABILITIES)
    def test_every_graph_for_every_gpu(self, shipped, library, precision, sm):
        for spec in self.specs(shipped, library, precision, (sm,)).values():
            if library.incompatibility(sm, precision):
                with pytest.raises(
                    InputError, match=r"cannot build it for SM 75: .*Turing.*FP32 3D convolution is not"
                ):
                    self.built(shipped, library, spec)
            else:
                assert len(self.built(shipped, library, spec)) > 100_000

    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    def test_what_is_asked_of_it(self, shipped, library, precision, monkeypatch):
        """Names, channels, types and layouts of inputs and outputs, and no TF32, as the builder gets them."""
        import tensorrt_rtx as trt

        seen = {}
        whole = library._config

        def watched(builder, network, spec):
            config = whole(builder, network, spec)
            tensors = [network.get_input(0), *map(network.get_output, range(network.num_outputs))]
            seen[spec.engine] = {
                tensor.name: (trt.nptype(tensor.dtype).__name__, tensor.allowed_formats, tuple(tensor.shape))
                for tensor in tensors
            }
            assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            assert not config.get_flag(trt.BuilderFlag.TF32)
            assert config.get_compute_capability(1) == trt.ComputeCapability.SM120
            return config

        monkeypatch.setattr(library, "_config", watched)
        for spec in self.specs(shipped, library, precision, (86, 120)).values():
            self.built(shipped, library, spec)
        between = {"fp16": ("float16", trt.TensorFormat.DHWC8), "fp32": ("float32", trt.TensorFormat.DHWC)}[precision]
        expected = between[0], 1 << int(between[1])
        planar = "float32", 1 << int(trt.TensorFormat.LINEAR)
        assert seen[EXTRACTOR]["image"] == (*planar, (1, 1, -1, -1, -1))
        for level, channels in {1: 8, 2: 16, 3: 32, 4: 32}.items():
            size = -1, -1, -1
            assert seen[EXTRACTOR][f"features_level{level}"] == (*expected, (1, channels, *size))
            assert seen[f"estimator_level{level}"] == {
                "features": (*expected, (1, 2 * channels, *size)),
                "residual": (*planar, (1, 3, *size)),
            }

    def test_working_size_for_all_gpus_at_once(self, shipped, library, tmp_path, cache):
        """Also no constants of the image's size in a plan: 69 MB of zeros that pad its one channel."""
        folder = copied(shipped, tmp_path)
        options = BuildOptions("tensorrt-rtx", CAPABILITIES, ("fp16",), Profile.only(SHAPE))
        build_plans(folder, options)
        entries = listing(folder)
        assert {entry["engine"] for entry in entries} == set(ENGINES)
        for entry in entries:
            assert entry["sms"] == list(CAPABILITIES) and entry["profile"]["usual"] == list(SHAPE)
            assert (folder / "plans" / entry["file"]).stat().st_size < 2e6

    def test_a_graph_of_the_other_precision_is_refused(self, shipped, library):
        spec = self.specs(shipped, library, "fp16", (89,))[EXTRACTOR]
        graph = load_engine_set(shipped).path(EXTRACTOR, "fp32").read_bytes()
        with pytest.raises(InputError, match=r"TensorRT-RTX .*, feature_extractor in fp16: the graph has .*float32"):
            library.build(graph, spec)

    def test_what_is_no_graph_is_refused(self, shipped, library):
        with pytest.raises(InputError, match=r"cannot read the graph, .*Failed to parse the ONNX model"):
            library.build(b"nonsense", self.specs(shipped, library, "fp16", (89,))[EXTRACTOR])

    def test_channels_that_fp16_would_pad_are_refused(self, library):
        from onnx import TensorProto, helper

        size = ["I", "J", "K"]
        tensors = [
            helper.make_tensor_value_info("features", TensorProto.FLOAT16, [1, 12, *size]),
            helper.make_tensor_value_info("residual", TensorProto.FLOAT, [1, 12, *size]),
        ]
        nodes = [helper.make_node("Cast", ["features"], ["residual"], to=TensorProto.FLOAT)]
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(
            helper.make_graph(nodes, "odd", tensors[:1], tensors[1:]), opset_imports=opset, ir_version=9
        )
        with pytest.raises(InputError, match="12 channels, expected a multiple of 8; use --precision fp32"):
            library.build(model.SerializeToString(), change(SPEC, sms=(89,)))

    def test_opening_one_without_a_gpu_is_one_line(self, shipped, library):
        from runtime.backends.cuda.gpu import find_gpu

        if not isinstance(find_gpu(), str):
            pytest.skip("there is a GPU")
        spec = self.specs(shipped, library, "fp16", (89,))["estimator_level4"]

        class Device:
            name = "no GPU"

        line = r"--backend: TensorRT-RTX .* cannot be opened on no GPU: .*driver"
        with pytest.raises(NotAvailableError, match=line) as error:
            library.open(self.built(shipped, library, spec), spec, Device())
        assert "\n" not in str(error.value)


def copied(folder: Path, tmp_path: Path) -> Path:
    """An engine set without plans."""
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("plans")))


class TestCommand:
    def run(self, folder, *arguments):
        return CliRunner().invoke(main, ["build", "--engine-dir", str(folder), *map(str, arguments)])

    def test_each_engine_is_a_line(self, shipped, library, tmp_path, cache):
        folder = copied(shipped, tmp_path)
        done = self.run(folder, "--target", "tensorrt-rtx", "--sm", "75,86", "--shape", "32,32,32")
        assert done.exit_code == 0, done.output
        lines = done.output.splitlines()
        assert lines[0].startswith("not built: SM 75 in fp32: ") and "Turing" in lines[0]
        for precision, sms in (("fp32", "SM 86"), ("fp16", "SM 75, 86")):
            for engine in ENGINES:
                assert any(line.split()[:2] == [engine, precision] and line.endswith(sms) for line in lines)
        assert lines[-1].startswith("10 plans for TensorRT-RTX ") and str(folder / "plans") in lines[-1]
        assert len(listing(folder)) == 10

    def test_what_was_built_from_another_graph_is_removed_and_said(self, shipped, library, tmp_path, cache):
        folder = copied(shipped, tmp_path)
        target = "--target", "tensorrt-rtx", "--sm", 89, "--precision", "fp16", "--shape", "32,32,32"
        self.run(folder, *target)
        path = folder / "plans" / "plans.json"
        path.write_text(path.read_text().replace(load_engine_set(folder).graph_hash(EXTRACTOR, "fp16"), "0" * 64))
        lines = self.run(folder, *target).output.splitlines()
        removed = [line for line in lines if line.startswith("removed ")]
        assert len(removed) == 1 and "feature_extractor" in removed[0] and "another graph" in removed[0]

    def test_quiet(self, shipped, library, tmp_path, cache):
        folder = copied(shipped, tmp_path)
        arguments = "--target", "tensorrt-rtx", "--sm", 89, "--precision", "fp16", "--shape", "32,32,32", "--quiet"
        assert self.run(folder, *arguments).output == ""

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (("--sm", "75", "--precision", "fp32"), r"nothing can be built \(SM 75 in fp32: .* use --precision fp16"),
            (("--sm", "75,90"), r"--sm: got 90, TensorRT-RTX .* builds for 75, 80, .*; for other GPUs use --target"),
            (("--sm", "x"), "--sm: got 'x', expected compute capabilities such as 75,86,120"),
            (("--shape", "20,32,32"), "--shape, --shapes: got 20,32,32, expected multiples of 8, at least 16"),
            (("--shapes", "64,64,64 32,32,32 96,96,96"), "expected smallest, usual and largest in this order"),
            (("--shapes", "1"), "--shapes: got '1', expected smallest, usual and largest"),
        ],
    )
    def test_what_cannot_be_built_is_one_line(self, shipped, library, tmp_path, cache, arguments, message):
        import re

        folder = copied(shipped, tmp_path)
        done = self.run(folder, "--target", "tensorrt-rtx", *arguments)
        assert done.exit_code == 1 and done.output.count("\n") == 1 and re.search(message, done.output), done.output
        assert not (folder / "plans").exists()

    def test_both_ways_to_say_sizes(self, shipped):
        done = self.run(shipped, "--target", "tensorrt-rtx", "--shape", "32,32,32", "--shapes", "1 2 3")
        assert done.exit_code == 2 and "give either --shape or --shapes" in done.output

    def test_a_library_that_is_missing(self, shipped, monkeypatch):
        import sys

        for target, package in (("tensorrt-rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt")):
            monkeypatch.setitem(sys.modules, package, None)
            done = self.run(shipped, "--target", target)
            assert done.exit_code == 1 and done.output.count("\n") == 1
            assert f"the package {package} " in done.output and BACKENDS[target].install in done.output

    def test_an_engine_that_fails_leaves_nothing_behind(self, shipped, library, tmp_path, cache, monkeypatch):
        from runtime.backends.networks.tensorrt.library import Library

        whole = Library.build

        def failing(self, graph, spec):
            if spec.engine == "estimator_level2":
                raise InputError("no")
            return whole(self, graph, spec)

        monkeypatch.setattr(Library, "build", failing)
        folder = copied(shipped, tmp_path)
        with pytest.raises(InputError, match="no"):
            build_plans(folder, BuildOptions("tensorrt-rtx", (89,), ("fp16",)))
        assert not (folder / "plans").exists()


class TestTensorRt:
    """TensorRT builds for the GPU of this machine; a stand-in replaces its package."""

    @pytest.fixture
    def gpu(self, monkeypatch):
        import sys

        from runtime.backends.cuda.gpu import GpuInfo
        from runtime.backends.networks.tensorrt import build
        from tests.backends.fake_tensorrt import fake_module

        monkeypatch.setitem(sys.modules, "tensorrt", fake_module("tensorrt", "11.0"))
        monkeypatch.setattr(build, "find_gpu", lambda: GpuInfo("RTX 4090", (8, 9), 24 * 10**9, (13, 0)))
        return build

    def test_for_the_gpu_in_fp16(self, shipped, tmp_path, cache, gpu):
        folder = copied(shipped, tmp_path)
        build_plans(folder, BuildOptions("tensorrt"))
        facts = {(entry["gpu"], *entry["sms"], entry["precision"], entry["version"]) for entry in listing(folder)}
        assert facts == {("RTX 4090", 89, "fp16", "11.0")} and len(listing(folder)) == len(ENGINES)

    def test_another_gpu_is_refused(self, shipped, gpu):
        with pytest.raises(
            InputError, match=r"--sm: got 86, TensorRT 11.0 builds only for the GPU of this computer, RTX 4090"
        ):
            build_plans(shipped, BuildOptions("tensorrt", (86,)))

    def test_without_a_gpu(self, shipped, gpu, monkeypatch):
        monkeypatch.setattr(gpu, "find_gpu", lambda: "no NVIDIA driver is installed")
        with pytest.raises(
            NotAvailableError,
            match="builds for the GPU of this computer, but no NVIDIA driver is installed; use --target",
        ):
            build_plans(shipped, BuildOptions("tensorrt"))

    def test_what_kernels_took_is_kept_for_the_next_build(self, shipped, tmp_path, cache, gpu):
        folder = copied(shipped, tmp_path)
        for times in (1, 2):
            build_plans(folder, BuildOptions("tensorrt", precisions=("fp32",)))
            (path,) = (cache / "rpnet-tensorrt").glob("timings.*")
            assert kept(path) == b"timed " * len(ENGINES) * times


def test_layouts():
    assert tensor_formats("estimator_level1", "fp16") == {
        "features": ("float16", "DHWC8"),
        "residual": ("float32", "LINEAR"),
    }
    assert set(tensor_formats(EXTRACTOR, "fp32").values()) == {("float32", "LINEAR"), ("float32", "DHWC")}
