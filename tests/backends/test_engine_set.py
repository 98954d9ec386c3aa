"""Engine sets: they are checked before anything is opened, and errors are reported in one line."""

import hashlib
import json
import os

import numpy as np
import onnx
import pytest

from runtime.backends.engine_set import ENGINES, EXTRACTOR, MANIFEST, estimator_name, load_engine_set, sealed
from runtime.backends.parity import example_pair
from runtime.backends.registry import BACKENDS
from runtime.errors import InputError
from runtime.host.files.hashes import sha256
from runtime.loop.stop_rules import parse_schedule


def edit(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest)))


def test_a_good_set_loads(engine_dir):
    engine_set = load_engine_set(engine_dir)
    assert engine_set.channels == {4: 32, 3: 32, 2: 16, 1: 8}
    assert (engine_set.spacing, engine_set.size_multiple, engine_set.precision) == (1.0, 8, "fp32")
    assert set(engine_set.hashes) == set(ENGINES)


def test_both_precisions_are_part_of_the_set(engine_dir):
    engine_set = load_engine_set(engine_dir)
    assert engine_set.precisions == ("fp32", "fp16")
    for engine in ENGINES:
        assert engine_set.hashes[engine] == engine_set.graph_hash(engine, "fp32")
        for precision, infix in (("fp32", ""), ("fp16", "fp16.")):
            start = engine_set.graph_hash(engine, precision)[:8]
            assert engine_set.path(engine, precision) == engine_dir / f"{engine}.{infix}{start}.onnx"


def test_a_set_of_an_earlier_export_has_fp32_only_and_stays_readable(engine_copy):
    edit(engine_copy, lambda manifest: [manifest.pop(key) for key in ("engines_fp16", "parity_fp16")])
    for path in engine_copy.glob("*.fp16.*"):
        path.unlink()
    engine_set = load_engine_set(engine_copy)
    assert engine_set.precisions == ("fp32",)
    engine_set.require("fp32")
    with pytest.raises(InputError, match=r"--precision: the engine set in .* has graphs in fp32, not in fp16; export"):
        engine_set.require("fp16")


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"--engine-dir: no folder .*absent; expected an engine set; export"):
        load_engine_set(tmp_path / "absent")


def test_no_manifest(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        load_engine_set(tmp_path)


def test_manifest_is_no_json(engine_copy):
    (engine_copy / MANIFEST).write_text('{"format": ')
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_engine_set(engine_copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "piper-voice", "has format 'piper-voice', expected 'rpnet-engine-set'"),
        ("version", 3, "has version 3, this program reads up to 2; update"),
        ("version", "one", "has version 'one'"),
        ("levels", [{"level": 4, "scale": 8, "channels": 32}], "levels"),
        ("spacing_mm", -1.0, "positive sizes"),
        ("spacing_mm", "thin", "incomplete or malformed"),
        ("stop", {"delta_t": 0.1}, "incomplete or malformed"),
        ("spacing_mm", float("nan"), r"cannot be read as JSON \(NaN is not a valid number\)"),
        ("size_multiple", float("inf"), r"cannot be read as JSON \(Infinity is not a valid number\)"),
        ("spacing_mm", 10**400, "incomplete or malformed"),
        ("stop", {"similarity": "ncc", "delta": "x", "limit": 10, "on_stop": "keep"}, "incomplete or malformed"),
        (
            "stop",
            {"similarity": "mi", "delta": 0.1, "limit": 10, "on_stop": "keep"},
            r"\(similarity: got 'mi', expected",
        ),
        ("intensity", {"rule": "histogram"}, r"\(intensity: got rule 'histogram', expected percentile or window\); "),
        ("intensity", {}, r"\(intensity: got rule None, expected percentile or window\); "),
        ("intensity", {"rule": "window", "low": 5}, r"\(intensity: got rule window with {'low': 5}, expected low and "),
        ("intensity", {"rule": "window", "low": 5, "high": 1}, "expected low and high, finite, low below high"),
        ("intensity", {"rule": "percentile", "upper": 101}, "expected upper, above 0 and at most 100"),
        ("intensity", {"rule": "percentile", "upper": 10**400}, "expected upper, above 0 and at most 100"),
        ("engines", [], "incomplete or malformed"),
        ("engines", {}, r"lists fp32 engines \[\], expected"),
        ("engines_fp16", {}, r"lists fp16 engines \[\], expected"),
        ("engines_fp16", {EXTRACTOR: {"file": "a.onnx"}}, "incomplete or malformed"),
        ("engines_fp16", {EXTRACTOR: {"file": "a.onnx", "sha256": 5}}, "incomplete or malformed"),
        ("engines_fp16", None, "incomplete or malformed"),
    ],
)
def test_foreign_newer_and_malformed_sets(engine_copy, field, value, message):
    edit(engine_copy, lambda manifest: manifest.update({field: value}))
    with pytest.raises(InputError, match=message):
        load_engine_set(engine_copy)


@pytest.mark.parametrize("field", ["format", "version", "engines", "levels", "spacing_mm", "intensity", "stop"])
def test_missing_fields(engine_copy, field):
    edit(engine_copy, lambda manifest: manifest.pop(field))
    with pytest.raises(InputError, match=r"--engine-dir: .*manifest\.json"):
        load_engine_set(engine_copy)


@pytest.mark.parametrize("backend", [name for name, backend in BACKENDS.items() if not backend.gpu])
def test_graphs_other_than_the_manifest_says(engine_copy, backend):
    """Wrong channels are found when the engines are opened, before any image is read."""
    import runtime

    levels = [{"level": level, "scale": 1, "channels": 8 if level == 1 else 12} for level in (4, 3, 2, 1)]
    edit(engine_copy, lambda manifest: manifest.update(levels=levels))
    with pytest.raises(InputError, match=r"a graph in .* takes .* the manifest states"):
        runtime.open_engines(engine_copy, backend)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_flipped_bit_is_found(engine_copy, engine, precision):
    path = load_engine_set(engine_copy).path(engine, precision)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path.name} is damaged: SHA-256 \w+\.\.\., expected"):
        load_engine_set(engine_copy)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_missing_graph_is_named(engine_copy, precision):
    path = load_engine_set(engine_copy).path(ENGINES[1], precision)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} is missing"):
        load_engine_set(engine_copy)


@pytest.mark.parametrize("name", ["../elsewhere.onnx", "nul\0.onnx", "half\ud800.onnx"])
@pytest.mark.parametrize("key", ["engines", "engines_fp16"])
def test_files_outside_the_folder_are_refused(engine_copy, key, name):
    edit(engine_copy, lambda manifest: manifest[key][ENGINES[0]].update(file=name))
    with pytest.raises(InputError, match="names files outside its folder"):
        load_engine_set(engine_copy)


def test_nesting_without_end_is_no_json(engine_copy):
    (engine_copy / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_engine_set(engine_copy)


def test_a_graph_that_is_no_file_is_not_waited_for(engine_copy):
    path = load_engine_set(engine_copy).path(EXTRACTOR)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"{path.name} is missing or unreadable"):
        load_engine_set(engine_copy)


def test_weights_in_another_file_are_refused(engine_copy):
    """The graph's hash is right, but does not cover the weights."""
    name = estimator_name(4)
    path = load_engine_set(engine_copy).path(name)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    digest = sha256(path.read_bytes())
    edit(engine_copy, lambda manifest: manifest["engines"][name].update(sha256=digest))
    with pytest.raises(InputError, match=rf"{path.name} keeps weights in another file .ONNX external data."):
        load_engine_set(engine_copy)


class TestTheManifestsOwnHash:
    def test_a_value_that_was_changed_is_noticed(self, engine_copy):
        path = engine_copy / MANIFEST
        path.write_text(path.read_text().replace('"delta": 0.005', '"delta": 0.004'))
        with pytest.raises(
            InputError, match=f"{MANIFEST} is damaged or was edited: its SHA-256 does not match; export"
        ):
            load_engine_set(engine_copy)

    def test_so_is_one_that_was_taken_out(self, engine_copy):
        manifest = json.loads((engine_copy / MANIFEST).read_text())
        del manifest["sha256"]
        (engine_copy / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="damaged or was edited"):
            load_engine_set(engine_copy)

    def test_how_it_is_written_does_not_count(self, engine_copy):
        manifest = json.loads((engine_copy / MANIFEST).read_text())
        (engine_copy / MANIFEST).write_text(json.dumps(dict(reversed(manifest.items())), indent=7))
        load_engine_set(engine_copy)

    def test_it_is_the_sha_256_of_the_rest_as_compact_sorted_json(self):
        assert sealed({"b": [1.5, None], "a": "x", "sha256": "old"}) == {
            "b": [1.5, None],
            "a": "x",
            "sha256": hashlib.sha256(b'{"a":"x","b":[1.5,null]}').hexdigest(),
        }

    def test_manifests_of_version_1_have_none_and_are_read(self, engine_copy):
        manifest = json.loads((engine_copy / MANIFEST).read_text())
        del manifest["sha256"]
        (engine_copy / MANIFEST).write_text(json.dumps(manifest | {"version": 1}))
        assert load_engine_set(engine_copy).manifest["version"] == 1


@pytest.mark.parametrize("backend", [name for name, backend in BACKENDS.items() if not backend.gpu])
def test_a_set_that_is_replaced_while_it_is_open_goes_on_as_it_was(engine_copy, backend, monkeypatch, tmp_path):
    """New image sizes come after the files are gone, and nothing has been compiled for these sizes yet."""
    import runtime

    def flow(engines, shape):
        return np.asarray(runtime.register_arrays(engines, *example_pair(shape), parse_schedule("1,1,1,1")).flow)

    with runtime.open_engines(engine_copy, backend, threads=1) as engines:
        expected = flow(engines, (16, 24, 16))
    cache = "runtime.backends.networks.openvino.cache_folder"
    monkeypatch.setattr(cache, lambda part: tmp_path / "empty")
    with runtime.open_engines(engine_copy, backend, threads=1) as engines:
        for path in engine_copy.iterdir():
            path.write_bytes(b"damaged") if path.suffix == ".onnx" else path.unlink()
        np.testing.assert_array_equal(flow(engines, (16, 24, 16)), expected)
