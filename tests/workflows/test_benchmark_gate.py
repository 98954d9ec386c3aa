"""The reference implementation, and the accuracy gate before all timing."""

import dataclasses
from types import MappingProxyType

import numpy as np
import onnxruntime
import pytest
import torch

import export.contender
from export.contender import TorchContender, torch_others
from export.from_engines import network_from_engines, write_checkpoint
from runtime.backends.engine_set import EXTRACTOR, estimator_name, load_engine_set
from runtime.backends.parity import TOLERANCES, example_pair, flow_difference
from runtime.errors import InputError, NotAvailableError
from runtime.loop.stop_rules import parse_schedule
from runtime.workflows.benchmark.contenders.contender import EngineContender, EngineRunner, Others, RunSettings, solve
from runtime.workflows.benchmark.contenders.line_up import LineUp
from runtime.workflows.benchmark.contenders.session import Session
from runtime.workflows.benchmark.measuring.accuracy_gate import GateError, check_all
from runtime.workflows.benchmark.options import BenchmarkOptions
from train.model.checkpoint import load_checkpoint

SHAPE = (24, 32, 16)
TASK = RunSettings(parse_schedule("1,1,1,1"), "ncc")


class TestNetworkFromEngines:
    def test_it_is_the_network_that_was_exported(self, checkpoint, engine_dir):
        """Folding adds 1 to a few weights, which rounds them once; all others come back bit for bit."""
        rebuilt = network_from_engines(load_engine_set(engine_dir)).state_dict()
        for name, tensor in load_checkpoint(checkpoint).network().state_dict().items():
            if "blocks" in name:
                torch.testing.assert_close(rebuilt[name], tensor, rtol=0, atol=6e-8)
            else:
                assert torch.equal(rebuilt[name], tensor)

    def test_as_a_checkpoint_it_can_be_trained_on(self, engine_dir, tmp_path):
        write_checkpoint(engine_dir, tmp_path / "runs" / "start.pt")
        written = load_checkpoint(tmp_path / "runs" / "start.pt")
        expected = network_from_engines(load_engine_set(engine_dir))
        assert all(torch.equal(written.state[name], tensor) for name, tensor in expected.state_dict().items())
        assert written.provenance == load_engine_set(engine_dir).manifest["provenance"]

    def test_its_outputs_are_the_graphs(self, engine_dir):
        engine_set = load_engine_set(engine_dir)
        network, image = network_from_engines(engine_set), torch.rand(1, 1, *SHAPE)
        with torch.inference_mode():
            features = network.encode(image)
            for found, level in zip(run_graph(engine_set, EXTRACTOR, image), (1, 2, 3, 4), strict=True):
                torch.testing.assert_close(found, features[level])
                stacked = torch.cat((features[level], features[level]), dim=1)
                (residual,) = run_graph(engine_set, estimator_name(level), stacked)
                torch.testing.assert_close(network.estimate(level, features[level], features[level]), residual)

    @pytest.mark.parametrize("network", [{"first_channels": 8, "res_blocks": 1}, {"first_channels": 4}])
    def test_a_manifest_of_another_network_is_refused(self, engine_dir, network):
        engine_set = load_engine_set(engine_dir)
        manifest = {**engine_set.manifest, "network": {"res_blocks": 2, **network}}
        with pytest.raises(InputError, match="export the set again"):
            network_from_engines(dataclasses.replace(engine_set, manifest=MappingProxyType(manifest)))


def run_graph(engine_set, engine, tensor):
    session = onnxruntime.InferenceSession(str(engine_set.path(engine)), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: tensor.numpy()})
    return [torch.from_numpy(output) for output in outputs]


class Here:
    """A session in this process, in place of a worker."""

    def __init__(self, name, runner, images):
        self.name, self._session = name, Session(None)
        self._session.runner = runner
        self._session.load(images)

    def call(self, method, *arguments):
        return getattr(self._session, method)(*arguments)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "pair.npz"
    fixed, moving = example_pair(SHAPE)
    np.savez(path, fixed=fixed, moving=moving)
    return path


@pytest.fixture(scope="module")
def reference(engine_dir, images):
    return Here("torch fp32", TorchContender(engine_dir, threads=1).open(), images)


class Wrong:
    """Networks whose residual flows are off by `error` voxels along I."""

    def __init__(self, networks, error):
        self._networks, self._error = networks, error

    def __getattr__(self, name):
        return getattr(self._networks, name)

    def residual(self, level, features):
        return self._networks.residual(level, features) + np.array([self._error, 0, 0], np.float32)


def contender(engines, images, error=0.0):
    return Here("engines", EngineRunner(dataclasses.replace(engines, networks=Wrong(engines.networks, error))), images)


def test_the_engines_pass(engines, images, reference, tmp_path):
    found, row = check_all(reference, [(reference, "fp32"), (contender(engines, images), "fp32")], TASK, 2.0, tmp_path)
    assert found["reference"] and found["name"] == "torch fp32", "the reference is run once, not compared with itself"
    assert row["voxels"]["max"] < 0.001 and row["counts"] == found["counts"] == ((1, 1, 1, 1),)
    assert row["mm"]["max"] == 2 * row["voxels"]["max"]
    assert row["similarity"] == pytest.approx(found["similarity"], abs=1e-5)


@pytest.mark.parametrize(("precision", "error", "words"), [("fp32", 0.02, "(largest)"), ("bf16", 0.2, "(mean)")])
def test_wrong_networks_do_not_pass(engines, images, reference, tmp_path, precision, error, words):
    wrong = contender(engines, images, error)
    with pytest.raises(GateError) as caught:
        check_all(reference, [(wrong, precision)], TASK, 1.0, tmp_path)
    message = str(caught.value)
    assert message.startswith("benchmark: engines is not timed: its flow differs by") and words in message
    assert "\n" not in message


def test_other_weights_do_not_pass(shipped, images, reference, tmp_path):
    other = Here("shipped", EngineContender(shipped, "onnxruntime", "fp32", 1).open(), images)
    with pytest.raises(GateError, match="shipped is not timed"):
        check_all(reference, [(other, "fp32")], TASK, 1.0, tmp_path)


def row(**values):
    voxels = dict.fromkeys(("max", "mean", "p95", "p99"), 0.0) | values.pop("voxels", {})
    return {"voxels": voxels, "counts_equal": True, "counts": "a", "expected_counts": "b", **values}


def test_tolerances():
    fp32, bf16 = TOLERANCES["fp32"], TOLERANCES["bf16"]
    assert fp32.refusal(row(voxels={"max": 0.01})) is None
    assert "0.011 voxel (largest), allowed 0.01" in fp32.refusal(row(voxels={"max": 0.011}))
    assert fp32.refusal(row(counts_equal=False)) == "it ran iterations a, expected b"
    assert bf16.refusal(row(voxels={"max": 1.0, "mean": 0.05}, counts_equal=False)) is None
    assert bf16.refusal(row(voxels={"mean": 0.06})) is not None


@pytest.mark.parametrize("precision", TOLERANCES)
def test_what_is_not_a_number_fails(precision):
    assert TOLERANCES[precision].refusal(row(voxels={"max": np.nan, "mean": np.nan}))


def test_flow_difference_is_the_length_of_the_difference():
    flow = np.zeros((3, 10, 10, 10), np.float32)
    moved = flow.copy()
    moved[:, 0, 0, 0] = (3, 0, 4)
    assert flow_difference(moved, flow) == {"max": 5.0, "mean": 0.005, "p95": 0.0, "p99": 0.0}
    with pytest.raises(InputError, match="shape"):
        flow_difference(flow, flow[:, :5])


def test_autocast_computes_in_half_precision_and_passes_its_gate(engine_dir, images, reference, tmp_path):
    """Runs on the CPU, which has autocast as well; the same code runs on a GPU."""
    contender = TorchContender(engine_dir, 1, "cpu", "autocast")
    runner = contender.open()
    assert contender.name == "torch autocast" and runner.facts["precision"] == "fp16"
    with runner.running():
        _, _, features = runner.fixed_side(runner.upload(np.load(images)["fixed"]), "ncc")
    for maps in features.values():
        assert maps.dtype == torch.float16 and maps.is_contiguous(memory_format=torch.channels_last_3d)
    there = Here(contender.name, runner, images)
    _, row = check_all(reference, [(there, "fp16")], TASK, 1.0, tmp_path)
    assert 0 < row["voxels"]["mean"] < 0.05


class TestWhereTorchRuns:
    """PyTorch, as a rival and as the reference, runs on the device of the engines."""

    def test_on_the_processor(self, engine_dir):
        found = torch_others(engine_dir, 1, timed=True, on_gpu=False)
        assert [rival.name for rival in found.rivals] == ["torch fp32"] == [each.name for each in found.references]

    def test_on_a_gpu(self, engine_dir):
        found = torch_others(engine_dir, 1, timed=True, on_gpu=True)
        assert [rival.name for rival in found.rivals] == ["torch fp32 cuda", "torch autocast cuda"]
        assert [each.name for each in found.references] == ["torch fp32 cuda", "torch fp32"]

    @pytest.mark.parametrize("on_gpu", [True, False])
    def test_it_is_timed_only_when_asked_for(self, engine_dir, on_gpu):
        assert not torch_others(engine_dir, 1, timed=False, on_gpu=on_gpu).rivals

    def test_without_torch_there_is_nobody_else(self, engine_dir, monkeypatch):
        monkeypatch.setattr(export.contender.importlib.util, "find_spec", lambda name: None)
        assert torch_others(engine_dir, 1, timed=False, on_gpu=True) == Others()

    def test_a_torch_that_sees_no_gpu_says_so(self, engine_dir, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(NotAvailableError, match=r"--against: torch \S+ sees no GPU .* or leave --against out"):
            TorchContender(engine_dir, 1, "cuda").open()


@dataclasses.dataclass(frozen=True)
class NotToBeHad:
    name: str = "elsewhere"
    words: str = "somebody else"

    def open(self, progress):
        raise NotAvailableError("nowhere to be found")


class TestField:
    options = BenchmarkOptions(backends=("onnxruntime",), precisions=("fp32",), threads=1)

    def field(self, engine_dir, **others):
        asked = []

        def ask(on_gpu):
            asked.append(on_gpu)
            return Others(**others)

        return LineUp(dataclasses.replace(self.options, engine_dir=engine_dir), ask), asked

    def test_others_are_asked_for_once_the_engines_are_open(self, engine_dir):
        field, asked = self.field(engine_dir)
        assert asked == []
        with field:
            assert asked == [False] == [field.on_gpu] and [entry.name for entry in field.entries] == [
                "onnxruntime fp32"
            ]
            with field.reference() as (worker, words):
                assert worker is field.entries[0].worker and words == "the same engine set on onnxruntime fp32"

    def test_a_reference_that_cannot_be_opened_is_replaced_in_so_many_words(self, engine_dir):
        field, _ = self.field(engine_dir, references=(NotToBeHad(),))
        with field, field.reference() as (worker, words):
            assert worker.name == "onnxruntime fp32"
            assert words == "the same engine set on onnxruntime fp32 (not elsewhere: nowhere to be found)"
            assert field.left_out == []

    def test_a_rival_that_cannot_be_opened_is_refused(self, engine_dir):
        field, _ = self.field(engine_dir, rivals=(NotToBeHad(),))
        with pytest.raises(InputError, match="nowhere to be found"):
            field.__enter__()


class TestTorchContender:
    def test_it_is_the_definition(self, engine_dir, images):
        from train.model.loop import register_with_torch

        arrays = np.load(images)
        runner = TorchContender(engine_dir, threads=1).open()
        task = RunSettings(parse_schedule("iterstop"), "ncc")
        run = solve(runner, task, arrays["moving"], arrays["fixed"])
        network = network_from_engines(load_engine_set(engine_dir))
        expected = register_with_torch(network, arrays["fixed"], arrays["moving"], task.schedule)
        np.testing.assert_array_equal(run.flow, expected.flow)
        assert (run.counts, run.similarity) == (expected.counts, expected.similarity)

    def test_its_stages_have_the_engines_names(self, engine_dir, images):
        arrays = np.load(images)
        runner = TorchContender(engine_dir, threads=1).open()
        run = solve(runner, RunSettings(parse_schedule("cascade:2"), "ncc"), arrays["moving"], arrays["fixed"])
        for stage in ("warp", "estimator", "compose"):
            levels = [span.level for span in run.spans if span.stage == stage]
            assert set(levels) == {1, 2, 3, 4}
        assert [span.level for span in run.spans if span.stage == "upsample"] == [3, 2, 1] * 2
        assert sum(span.stage == "encode" for span in run.spans) == 3
        assert sum(span.seconds for span in run.spans) <= run.seconds["loop"] + run.seconds["finish"]
