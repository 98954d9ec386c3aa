"""From checkpoint to published set: the graphs, the gate, and the one atomic step."""

import json

import numpy as np
import onnx
import pytest
import torch

import export.parity
import export.publish
from export.graphs import FoldedEstimator, export_graphs
from export.parity import ParityError
from export.publish import CARD, ExportOptions, export_checkpoint
from export.reference import register_with_torch
from runtime import iterstop
from runtime.example import example_pair
from runtime.geometry.errors import InputError
from runtime.manifest import ENGINES, EXTRACTOR, MANIFEST, load_engine_set
from runtime.registration import register_arrays
from train.checkpoint import load_checkpoint
from train.fields import compose, upsample, warp
from train.network import FlowEstimator, NetworkConfig, RPNet

SMALL = ExportOptions(gate_shape=(16, 24, 16))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("blocks", range(5))
def test_folding_residual_blocks_changes_nothing(blocks):
    torch.manual_seed(blocks)
    estimator = FlowEstimator(8, 16, blocks).eval()
    features = torch.randn(1, 16, 6, 7, 8)
    with torch.inference_mode():
        torch.testing.assert_close(FoldedEstimator(estimator)(features), estimator(features), rtol=1e-4, atol=1e-5)


def test_graphs_are_plain_convolutions_with_named_dynamic_axes(engine_dir):
    engine_set = load_engine_set(engine_dir)
    for engine in ENGINES:
        model = onnx.load(engine_set.path(engine))
        onnx.checker.check_model(model, full_check=True)
        assert {node.op_type for node in model.graph.node} <= {"Conv", "LeakyRelu", "AveragePool"}
        assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
        convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
        assert convolutions == (4 if engine == EXTRACTOR else 5), "the residual additions are folded away"
        shape = model.graph.input[0].type.tensor_type.shape.dim
        axes = [dimension.dim_param for dimension in shape[2:]]
        assert axes == (["8*I8", "8*J8", "8*K8"] if engine == EXTRACTOR else ["I", "J", "K"])
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_export_is_the_same_every_time(checkpoint, engine_dir):
    graphs = export_graphs(load_checkpoint(checkpoint).network())
    published = load_engine_set(engine_dir)
    assert {engine: published.path(engine).read_bytes() for engine in ENGINES} == graphs


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
    assert "Model card" in (engine_dir / CARD).read_text()


def test_nothing_but_the_set_is_published(engine_dir):
    names = {entry["file"] for entry in json.loads((engine_dir / MANIFEST).read_text())["engines"].values()}
    assert {path.name for path in engine_dir.iterdir()} == {*names, MANIFEST, CARD}


def test_a_set_that_computes_something_else_fails_the_gate_and_the_old_one_stays(checkpoint, engine_copy, monkeypatch):
    """The exported graphs are those of another network: a real difference, found by the real gate."""
    before = contents(engine_copy)
    torch.manual_seed(99)
    other = RPNet()
    monkeypatch.setattr(export.publish, "export_graphs", lambda network: export_graphs(other))
    with pytest.raises(ParityError, match=r"parity: .* differs by .*nothing was published"):
        export_checkpoint(checkpoint, engine_copy, SMALL)
    assert contents(engine_copy) == before


def test_a_graph_that_gives_nan_fails_the_gate_as_a_graph(checkpoint, engines, monkeypatch):
    network = load_checkpoint(checkpoint).network()
    right = engines.networks.residual

    def broken(level, features):
        return right(level, features) * (np.nan if level == 1 else 1)

    monkeypatch.setattr(engines.networks, "residual", broken)
    with pytest.raises(ParityError, match="residual of level 1 differs by nan"):
        export.parity.check_parity(network, engines, example_pair((16, 16, 16)), "a pair")


def test_a_failed_gate_leaves_no_folder_behind(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export.parity, "FLOW_TOLERANCE", -1.0)
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


def test_the_gate_watches_whole_registrations_too(checkpoint, engine_copy, monkeypatch):
    """Graphs that agree do not suffice: a fault in the field operations shows in the flow."""
    from runtime.backends.fields_numba import NumbaFields

    before = contents(engine_copy)
    right = NumbaFields.compose
    monkeypatch.setattr(NumbaFields, "compose", lambda self, flow, residual: right(self, flow, residual) + 0.02)
    with pytest.raises(ParityError, match=r"parity: 1,1,1,1: flow differs by"):
        export_checkpoint(checkpoint, engine_copy, SMALL)
    assert contents(engine_copy) == before


def test_republishing_replaces_the_set_and_leaves_no_old_graphs(tmp_path, engine_copy):
    from train.checkpoint import Checkpoint, save_checkpoint

    torch.manual_seed(5)
    network = RPNet(NetworkConfig(res_blocks=1))
    save_checkpoint(tmp_path / "other.pt", Checkpoint(network.config, network.state_dict()))
    old = load_engine_set(engine_copy).hashes
    export_checkpoint(tmp_path / "other.pt", engine_copy, SMALL)
    new = load_engine_set(engine_copy)
    assert new.manifest["network"]["res_blocks"] == 1
    assert not set(old.values()) & set(new.hashes.values())
    assert len(list(engine_copy.glob("*.onnx"))) == len(ENGINES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_shape": (20, 24, 16)}, "--gate-shape: got"),
        ({"gate_shape": (8, 24, 16)}, "--gate-shape: got"),
        ({"gate_fixed": "a.nii"}, "expected both or neither"),
        ({"spacing": 0.0}, "--spacing: got 0.0"),
    ],
)
def test_options_are_checked_before_any_work(options, message):
    with pytest.raises(InputError, match=message):
        ExportOptions(**options)


def textbook(network, fixed, moving, delta, on_stop):
    """SPEC's two stop behaviours written out once more, independent of `runtime.iterstop`. Returns flow and counts."""

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


@pytest.mark.parametrize("on_stop", iterstop.ON_STOP)
@pytest.mark.parametrize("delta", [0.005, 0.0005, 0.0])
def test_engines_and_loop_equal_a_textbook_transcription(checkpoint, engines, on_stop, delta):
    network = load_checkpoint(checkpoint).network()
    fixed, moving = example_pair((32, 40, 32))
    with torch.inference_mode():
        tensors = (torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (fixed, moving))
        expected, counts = textbook(network, *tensors, delta, on_stop)
    schedule = iterstop.iterstop_schedule(delta=delta, on_stop=on_stop)
    found = register_arrays(engines, fixed, moving, schedule)
    assert found.counts == (counts,)
    np.testing.assert_allclose(found.flow, expected, atol=1e-3)


@pytest.mark.parametrize("similarity", ["ncc", "lncc", "mse"])
def test_every_similarity_has_its_definition_in_torch(checkpoint, engines, similarity):
    network = load_checkpoint(checkpoint).network()
    fixed, moving = example_pair((16, 24, 16), seed=3)
    schedule = iterstop.iterstop_schedule(similarity, limit=3)
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
    found = register_arrays(engines, fixed, moving, iterstop.fixed_schedule((1, 1, 1, 1)))
    np.testing.assert_allclose(found.flow, expected, atol=1e-3)
