"""Export of a checkpoint to a published set: the graphs, the gate and the atomic publication."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import export.parity
import export.publish
from export.from_engines import network_from_engines
from export.graphs import Ends, FoldedEstimator, HalfEstimator, HalfExtractor, check_graph, export_graphs
from export.parity import ParityError
from export.publish import MODEL_CARD, ExportOptions, export_checkpoint
from runtime.backends.engine_set import ENGINES, EXTRACTOR, MANIFEST, load_engine_set
from runtime.backends.parity import example_pair
from runtime.errors import InputError
from runtime.loop.schedules import fixed_schedule
from runtime.loop.stop_rules import ON_STOP, iterstop_schedule
from runtime.registration.arrays import register_arrays
from train.model.checkpoint import load_checkpoint
from train.model.fields import compose, upsample, warp
from train.model.loop import register_with_torch
from train.model.network import FlowEstimator, RPNet

SMALL = ExportOptions(gate_shape=(16, 24, 16))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def graphs_of(folder):
    """Return a fast replacement for `export_graphs`: it gives the graphs of a set, which equal them bit for bit."""
    engine_set = load_engine_set(folder)
    return lambda network, precision: {engine: engine_set.path(engine, precision).read_bytes() for engine in ENGINES}


@pytest.fixture
def quick(engine_dir, monkeypatch):
    """Exports of `checkpoint` take the graphs that were exported from it before; the gate has one schedule."""
    monkeypatch.setattr(export.publish, "export_graphs", graphs_of(engine_dir))
    monkeypatch.setattr(export.parity, "GATE_SCHEDULES", ("1,1,1,1",))
    monkeypatch.setattr(export.parity, "GATE_ON_STOP", ())


@pytest.mark.parametrize("blocks", range(5))
def test_folding_residual_blocks_changes_nothing(blocks):
    torch.manual_seed(blocks)
    estimator = FlowEstimator(8, 16, blocks).eval()
    features = torch.randn(1, 16, 6, 7, 8)
    with torch.inference_mode():
        torch.testing.assert_close(FoldedEstimator(estimator)(features), estimator(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_are_plain_convolutions_with_named_dynamic_axes(engine_dir, precision):
    engine_set = load_engine_set(engine_dir)
    for engine in ENGINES:
        model = onnx.load(engine_set.path(engine, precision))
        onnx.checker.check_model(model, full_check=True)
        kinds = {node.op_type for node in model.graph.node} - ({"Cast"} if precision == "fp16" else set())
        assert kinds <= {"Conv", "LeakyRelu", "AveragePool"}
        assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
        convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
        assert convolutions == (4 if engine == EXTRACTOR else 5), "the residual additions are folded away"
        shape = model.graph.input[0].type.tensor_type.shape.dim
        axes = [dimension.dim_param for dimension in shape[2:]]
        assert axes == (["8*I8", "8*J8", "8*K8"] if engine == EXTRACTOR else ["I", "J", "K"])
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_fp16_graphs_have_fp16_convolutions_between_ends_of_stated_types(engine_dir):
    """One cast of the image and one of each residual; nothing else is float32, and the weights take half the space."""
    engine_set = load_engine_set(engine_dir)
    for engine in ENGINES:
        graph = onnx.load(engine_set.path(engine, "fp16")).graph
        takes, gives = ([value.type.tensor_type.elem_type for value in end] for end in (graph.input, graph.output))
        half = TensorProto.FLOAT16
        assert (takes, gives) == (([1], [half] * 4) if engine == EXTRACTOR else ([half], [1]))
        assert {tensor.data_type for tensor in graph.initializer} == {half}
        casts = [node for node in graph.node if node.op_type == "Cast"]
        assert len(casts) == 1 and casts[0] is (graph.node[0] if engine == EXTRACTOR else casts[-1])
        sizes = [engine_set.path(engine, precision).stat().st_size for precision in ("fp32", "fp16")]
        assert sizes[1] < 0.55 * sizes[0]


class TestCheckGraph:
    """Graphs that pass the ONNX checker but are rejected: another type, another name, an unused input."""

    def graph(self, weights=TensorProto.FLOAT16, gives=TensorProto.FLOAT, axes=("I", "J", "K")):
        make = onnx.helper
        weight = make.make_tensor("w", weights, [3, 2, 1, 1, 1], [1.0] * 6)
        nodes = [make.make_node("Cast", ["features"], ["typed"], to=weights)]
        nodes += [make.make_node("Conv", ["typed", "w"], ["sums"], kernel_shape=[1, 1, 1])]
        nodes += [make.make_node("Cast", ["sums"], ["residual"], to=gives)]
        takes = make.make_tensor_value_info("features", TensorProto.FLOAT16, [1, 2, *axes])
        given = make.make_tensor_value_info("residual", gives, [1, 3, *axes])
        graph = make.make_graph(nodes, "g", [takes], [given], [weight])
        return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)

    ENDS = Ends(("features", TensorProto.FLOAT16), (("residual", TensorProto.FLOAT),), TensorProto.FLOAT16)

    def test_the_graph_meant_passes(self):
        check_graph(self.graph(), self.ENDS)

    @pytest.mark.parametrize(
        ("kinds", "message"),
        [
            ({"weights": TensorProto.FLOAT}, "convolutions of another type than 10"),
            ({"gives": TensorProto.FLOAT16}, "gives .*'residual', 10"),
            ({"axes": (4, 4, 4)}, "fixed sizes"),
        ],
    )
    def test_another_does_not(self, kinds, message):
        with pytest.raises(RuntimeError, match=message):
            check_graph(self.graph(**kinds), self.ENDS)

    def test_other_ends_do_not(self):
        for ends in (replace(self.ENDS, takes=("image", 10)), replace(self.ENDS, takes=("features", 1))):
            with pytest.raises(RuntimeError, match=r"exported graph takes .*'features', 10"):
                check_graph(self.graph(), ends)


@pytest.mark.parametrize(
    ("factor", "fits"), [(1, True), (1e-3, True), (1e-6, False), (1e-12, False), (1e7, False), (float("nan"), False)]
)
def test_weights_that_fp16_cannot_hold_are_refused(factor, fits):
    """Large weights become infinite, small ones lose bits or vanish: faults that Dice would not explain."""
    torch.manual_seed(0)
    estimator = FoldedEstimator(RPNet().estimators["2"])
    with torch.no_grad():
        estimator.linear[0].weight *= factor
    if fits:
        HalfEstimator(estimator, "estimator_level2")
        return
    with pytest.raises(InputError, match=r"fp16.* cannot hold linear\.0\.weight of estimator_level2.*--no-fp16"):
        HalfEstimator(estimator, "estimator_level2")


def test_a_bias_that_overflows_is_refused_and_a_tiny_one_is_not():
    network = RPNet()
    with torch.no_grad():
        network.extractor.convolutions[0].bias[:] = 1e-12
    HalfExtractor(network.extractor)
    with torch.no_grad():
        network.extractor.convolutions[0].bias[3] = 1e5
    with pytest.raises(InputError, match=r"cannot hold convolutions\.0\.bias of feature_extractor, at most 1e[+]05"):
        export_graphs(network, "fp16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_export_is_the_same_every_time(checkpoint, engine_dir, precision):
    graphs = export_graphs(load_checkpoint(checkpoint).network(), precision)
    published = load_engine_set(engine_dir)
    assert {engine: published.path(engine, precision).read_bytes() for engine in ENGINES} == graphs


def test_manifest_says_what_the_runtime_and_a_reader_need(engine_dir):
    manifest = json.loads((engine_dir / MANIFEST).read_text())
    assert manifest["network"] == {"name": "RP-Net", "first_channels": 8, "res_blocks": 2}
    assert [entry["channels"] for entry in manifest["levels"]] == [32, 32, 16, 8]
    assert manifest["stop"] == {"similarity": "ncc", "delta": 0.005, "limit": 10, "on_stop": "keep"}
    assert manifest["intensity"] == {"rule": "percentile", "upper": 99.9}
    assert manifest["licence"] == "Apache-2.0"
    loops = {loop["schedule"]: loop for loop in manifest["parity"]["loops"]}
    assert {"1,1,1,1", "iterstop keep", "iterstop revert", "cascade:2"} <= loops.keys()
    assert all(loop["largest"] <= 0.01 and loop["counts"] == loop["expected_counts"] for loop in loops.values())
    half = manifest["parity_fp16"]
    assert [loop["schedule"] for loop in half["loops"]] == list(loops)
    assert all(1e-6 < loop["mean"] <= 0.05 for loop in half["loops"]), "within the tolerance, and rounded at all"
    assert manifest["parity"]["tolerance"] == {"graph": 1e-3, "largest": 0.01, "mean": None, "counts": True}
    assert half["tolerance"] == {"graph": 5e-3, "largest": None, "mean": 0.05, "counts": False}
    card = (engine_dir / MODEL_CARD).read_text()
    assert "Model card" in card and "| fp32 | 1,1,1,1 |" in card and "| fp16 | 1,1,1,1 |" in card


def test_nothing_but_the_set_is_published(engine_dir):
    manifest = json.loads((engine_dir / MANIFEST).read_text())
    names = {entry["file"] for key in ("engines", "engines_fp16") for entry in manifest[key].values()}
    assert len(names) == 2 * len(ENGINES)
    assert contents(engine_dir).keys() == {*names, MANIFEST, MODEL_CARD}


@pytest.mark.parametrize("wrong", ["fp32", "fp16"])
def test_a_set_that_computes_something_else_fails_the_gate_and_the_old_one_stays(
    checkpoint, engine_copy, shipped, monkeypatch, wrong
):
    """The exported graphs belong to another network: a real difference, detected by the real gate."""
    before, right, other = contents(engine_copy), graphs_of(engine_copy), graphs_of(shipped)
    found = lambda network, precision: (other if precision == wrong else right)(network, precision)  # noqa: E731
    monkeypatch.setattr(export.publish, "export_graphs", found)
    with pytest.raises(ParityError, match=rf"parity: {wrong}: .* differs by .*nothing was published"):
        export_checkpoint(checkpoint, engine_copy, SMALL)
    assert contents(engine_copy) == before


@pytest.mark.usefixtures("quick")
def test_fp16_that_is_refused_can_be_left_out(checkpoint, tmp_path, monkeypatch):
    """The message says how, and the remaining set is complete."""
    strict = replace(export.parity.GATE_TOLERANCES["fp16"], graph=1e-5)
    monkeypatch.setitem(export.parity.GATE_TOLERANCES, "fp16", strict)
    with pytest.raises(ParityError, match=r"parity: fp16: .* of its range, allowed 1e-05; .*with --no-fp16"):
        export_checkpoint(checkpoint, tmp_path / "set", SMALL)
    assert list(export_checkpoint(checkpoint, tmp_path / "set", replace(SMALL, fp16=False))) == ["fp32"]
    engine_set = load_engine_set(tmp_path / "set")
    assert engine_set.precisions == ("fp32",) and "parity_fp16" not in engine_set.manifest
    assert "| precision | fp32, ONNX" in (tmp_path / "set" / MODEL_CARD).read_text()


def test_the_gate_tells_fp16_from_eight_bits(checkpoint, engine_dir, monkeypatch):
    """With results rounded to bf16's eight bits after every node, instead of fp16's eleven, the graphs do not pass."""
    import runtime
    from runtime.backends.networks.onnxruntime import RoundedGraph

    def eight_bits(values):
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(values.dtype)

    def run(self, outputs, feeds):
        values = dict(feeds)
        for taken, given, session in self._nodes:
            values[given] = eight_bits(session.run([given], {taken: values[taken]})[0])
        return [values[name] for name in outputs]

    network = load_checkpoint(checkpoint).network()
    monkeypatch.setattr(RoundedGraph, "run", run)
    refused = pytest.raises(ParityError, match=r"parity: fp16: .* of its range, allowed 0\.005")
    with runtime.open_engines(engine_dir, "onnxruntime", precision="fp16") as engines, refused:
        export.parity.check_parity(network, engines, example_pair((16, 16, 16)), "a pair")


def test_a_graph_that_gives_nan_fails_the_gate_as_a_graph(checkpoint, engines, monkeypatch):
    network = load_checkpoint(checkpoint).network()
    right = engines.networks.residual

    def broken(level, features):
        return right(level, features) * (np.nan if level == 1 else 1)

    monkeypatch.setattr(engines.networks, "residual", broken)
    with pytest.raises(ParityError, match="residual of level 1 differs by nan"):
        export.parity.check_parity(network, engines, example_pair((16, 16, 16)), "a pair")


@pytest.mark.usefixtures("quick")
def test_a_failed_gate_leaves_no_folder_behind(checkpoint, tmp_path, monkeypatch):
    gate = export.parity.GATE_TOLERANCES["fp32"]
    monkeypatch.setitem(export.parity.GATE_TOLERANCES, "fp32", replace(gate, flow=replace(gate.flow, largest=-1.0)))
    with pytest.raises(ParityError):
        export_checkpoint(checkpoint, tmp_path / "new", SMALL)
    assert not (tmp_path / "new").exists()


def test_the_card_tells_facts_of_the_engines_from_facts_of_the_training():
    manifest = {
        "network": {"first_channels": 8, "res_blocks": 2},
        "stop": {"similarity": "ncc", "delta": 0.005, "limit": 10, "on_stop": "keep"},
        "spacing_mm": 1.0, "intensity": {"rule": "percentile", "upper": 99.9}, "precision": "fp32", "opset": 20,
        "licence": "Apache-2.0", "created": "today", "provenance": {"precision": "bf16"},
    }  # fmt: skip
    engines_part, training_part = export.publish.model_card(manifest, "").split("## Training")
    assert "| precision | fp32" in engines_part and "| precision | bf16" in training_part


@pytest.mark.usefixtures("quick")
def test_the_gate_watches_whole_registrations_too(checkpoint, engine_copy, monkeypatch):
    """Correct graphs are not enough: a fault in the field operations changes the flow."""
    from runtime.backends.fields.cpu import NumbaFields

    before = contents(engine_copy)
    right = NumbaFields.compose
    monkeypatch.setattr(NumbaFields, "compose", lambda self, flow, residual: right(self, flow, residual) + 0.02)
    with pytest.raises(ParityError, match=r"parity: fp32: 1,1,1,1: its flow differs by"):
        export_checkpoint(checkpoint, engine_copy, SMALL)
    assert contents(engine_copy) == before


@pytest.mark.usefixtures("quick")
def test_republishing_replaces_the_set_and_leaves_no_old_graphs(tmp_path, engine_copy, shipped, monkeypatch):
    from train.model.checkpoint import Checkpoint, save_checkpoint

    network = network_from_engines(load_engine_set(shipped))
    save_checkpoint(tmp_path / "other.pt", Checkpoint(network.config, network.state_dict()))
    monkeypatch.setattr(export.publish, "export_graphs", graphs_of(shipped))
    old = set(engine_copy.glob("*.onnx"))
    export_checkpoint(tmp_path / "other.pt", engine_copy, SMALL)
    new = load_engine_set(engine_copy)
    assert all(new.manifest[key] == load_engine_set(shipped).manifest[key] for key in ("engines", "engines_fp16"))
    assert not old & set(engine_copy.glob("*.onnx"))
    assert len(list(engine_copy.glob("*.onnx"))) == 2 * len(ENGINES)
    export_checkpoint(tmp_path / "other.pt", engine_copy, replace(SMALL, fp16=False))
    assert len(list(engine_copy.glob("*.onnx"))) == len(ENGINES), "nor fp16 graphs that are no part of the set now"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_shape": (20, 24, 16)}, "--gate-shape: got"),
        ({"gate_shape": (8, 24, 16)}, "--gate-shape: got"),
        ({"gate_fixed": "a.nii"}, "expected both or neither"),
        ({"spacing": 0.0}, "--spacing: got 0.0"),
        ({"spacing": math.inf}, "--spacing: got inf"),
        ({"notes": Path("/dev/null")}, "--notes: /dev/null is not a file but a device"),
    ],
)
def test_options_are_checked_before_any_work(options, message):
    with pytest.raises(InputError, match=message):
        ExportOptions(**options)


def test_notes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "notes.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"^--notes: .*notes\.md is not text"):
        export.publish._read_notes(tmp_path / "notes.md")


def reference(network, fixed, moving, delta, on_stop):
    """Return flow and counts of IterStop's two stop behaviours, written out independently of the loop."""

    def similarity(flow, scale):
        warped = warp(moving, upsample(flow, scale) if scale > 1 else flow).double().ravel()
        return float(torch.corrcoef(torch.stack((fixed.double().ravel(), warped)))[0, 1])

    moving_features, fixed_features = network.encode(moving), network.encode(fixed)
    flow = torch.zeros(1, 3, *moving_features[4].shape[2:])
    counts, best = [], similarity(flow, 8)
    for level, scale in ((4, 8), (3, 4), (2, 2), (1, 1)):
        if level != 4:
            flow = upsample(flow, 2)
        count = 0
        while count < 10:
            residual = network.estimate(level, warp(moving_features[level], flow), fixed_features[level])
            candidate = compose(flow, residual)
            now = similarity(candidate, scale)
            improved = now - best >= delta
            first_of_all = on_stop == "keep" and level == 4 and count == 0
            if improved or first_of_all or (on_stop == "keep" and level != 4):
                flow, best, count = candidate, now, count + 1
            if not improved and not first_of_all:
                break
        counts.append(count)
    return flow[0].numpy(), tuple(counts)


@pytest.mark.parametrize("on_stop", ON_STOP)
@pytest.mark.parametrize("delta", [0.005, 0.0005, 0.0])
def test_engines_and_loop_equal_an_independent_transcription(checkpoint, engines, on_stop, delta):
    network = load_checkpoint(checkpoint).network()
    fixed, moving = example_pair((32, 40, 32))
    with torch.inference_mode():
        tensors = (torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (fixed, moving))
        expected, counts = reference(network, *tensors, delta, on_stop)
    schedule = iterstop_schedule(delta=delta, on_stop=on_stop)
    found = register_arrays(engines, fixed, moving, schedule)
    assert found.counts == (counts,)
    np.testing.assert_allclose(found.flow, expected, atol=1e-3)


@pytest.mark.parametrize("similarity", ["ncc", "lncc", "mse"])
def test_every_similarity_has_its_definition_in_torch(checkpoint, engines, similarity):
    network = load_checkpoint(checkpoint).network()
    fixed, moving = example_pair((16, 24, 16), seed=3)
    schedule = iterstop_schedule(similarity, limit=3)
    expected = register_with_torch(network, fixed, moving, schedule, similarity)
    found = register_arrays(engines, fixed, moving, schedule, similarity)
    assert found.counts == expected.counts
    assert found.similarity == pytest.approx(expected.similarity, abs=1e-5)


def test_rp_net_is_the_schedule_of_one_iteration_a_level(checkpoint, engines):
    network = load_checkpoint(checkpoint).network()
    fixed, moving = example_pair((24, 16, 32), seed=4)
    with torch.inference_mode():
        tensors = (torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (moving, fixed))
        expected = network(*tensors)[0].numpy()
    found = register_arrays(engines, fixed, moving, fixed_schedule((1, 1, 1, 1)))
    np.testing.assert_allclose(found.flow, expected, atol=1e-3)
