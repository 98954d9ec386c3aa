"""Export of a checkpoint to a published engine set."""

import contextlib
import datetime
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from export.graphs import OPSET, export_graphs
from export.parity import Parity, check_parity
from runtime.backends.engine_set import (
    ENGINES,
    FORMAT,
    GRAPH_KEYS,
    MANIFEST,
    VERSION,
    EngineSet,
    load_engine_set,
    manifest_text,
)
from runtime.backends.parity import example_pair
from runtime.errors import InputError
from runtime.geometry.grid import SIZE_MULTIPLE, fit_to
from runtime.host.files.folder_lock import folder_lock
from runtime.host.files.hashes import sha256
from runtime.host.files.regular_files import read_bytes, require_file
from runtime.host.files.whole_files import sync, temporary_name
from runtime.images.intensity import PercentileRule, Rule, WindowRule
from runtime.images.volume import read_volume
from runtime.loop.stop_rules import DEFAULT_DELTA, DEFAULT_LIMIT
from runtime.registration.engines import open_engines
from runtime.registration.preprocessing import prepare
from runtime.types import Array
from train.model.checkpoint import Checkpoint, load_checkpoint
from train.model.network import LEVELS

MODEL_CARD = "MODEL_CARD.md"
LARGEST_NOTES = 1 << 24  # bytes
GENERATED_SHAPE = (64, 80, 72)
PARITY_KEYS = {"fp32": "parity", "fp16": "parity_fp16"}
Graphs = dict[str, bytes]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        gate_shape: size of the pair that the parity gate runs on, multiples of 8, at least 16; None: 64 x 80 x 72 for a
            generated pair, the working grid for scans. Scans are cropped or padded to it about their centre.
        gate_fixed, gate_moving: two scans for the gate instead of a generated pair, prepared as in `register`.
        spacing: voxel size that the network was trained at, mm.
        window: (low, high) intensity window that the network was trained with; None: 0 to the 99.9th percentile.
        notes: Markdown file appended to the model card.
        fp16: whether the set contains fp16 graphs besides those in fp32.
    """

    gate_shape: tuple[int, int, int] | None = None
    gate_fixed: Path | None = None
    gate_moving: Path | None = None
    spacing: float = 1.0
    window: tuple[float, float] | None = None
    notes: Path | None = None
    fp16: bool = True

    def __post_init__(self) -> None:
        if any(size % SIZE_MULTIPLE or size < 2 * SIZE_MULTIPLE for size in self.gate_shape or ()):
            raise InputError(f"--gate-shape: got {self.gate_shape}, expected multiples of {SIZE_MULTIPLE}, at least 16")
        if (self.gate_fixed is None) != (self.gate_moving is None):
            raise InputError("--gate-fixed, --gate-moving: got one, expected both or neither")
        for name, path in (("--gate-fixed", self.gate_fixed), ("--gate-moving", self.gate_moving)):
            if path is not None:
                require_file(path, name)
        if not 0 < self.spacing < math.inf:
            raise InputError(f"--spacing: got {self.spacing}, expected mm above 0")
        _ = self.rule
        if self.notes is not None:
            require_file(self.notes, "--notes")

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("fp32", "fp16") if self.fp16 else ("fp32",)

    @property
    def rule(self) -> Rule:
        return WindowRule(*self.window) if self.window else PercentileRule()


def export_checkpoint(
    checkpoint_path: Path, engine_dir: Path, options: ExportOptions, echo: Callable[[str], None] = lambda line: None
) -> dict[str, Parity]:
    """Export a checkpoint, pass every precision through the parity gate and publish the set in one atomic step.

    A set that is already in `engine_dir` stays valid and unchanged until its manifest is replaced at the very end.

    Args:
        checkpoint_path: a checkpoint of ours or of the authors.
        engine_dir: folder of the set; created if missing.
        options: see `ExportOptions`.
        echo: called with each line of progress.

    Returns:
        The measurements of the gate by precision.

    Raises:
        InputError: the checkpoint or the gate's scans cannot be read, fp16 cannot hold the weights, or the folder
            cannot be written.
        ScarceError: another run has locked the folder.
        ParityError: the gate failed.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    network = checkpoint.network()
    notes = _read_notes(options.notes) if options.notes else ""
    echo(f"exporting {checkpoint_path} ({sum(p.numel() for p in network.parameters()):,} parameters)")
    if (engine_dir / MANIFEST).exists():
        echo(f"the set in {engine_dir} will be replaced if the new one passes the gate")
    with folder_lock(engine_dir, "--engine-dir"), _staging(engine_dir) as stage:
        graphs = {precision: export_graphs(network, precision) for precision in options.precisions}
        manifest = _manifest(checkpoint, graphs, options)
        _write_set(stage, graphs, manifest)
        images, pair = _gate_pair(options, load_engine_set(stage))
        parities = {}
        for precision in graphs:
            echo(f"{len(ENGINES)} {precision} graphs, opset {OPSET}, pass the ONNX checker; parity gate on {images}:")
            with open_engines(stage, backend="onnxruntime", precision=precision) as engines:
                parities[precision] = check_parity(network, engines, pair, images, echo)
            manifest[PARITY_KEYS[precision]] = parities[precision].as_dict()
        _write_set(stage, {}, manifest)
        (stage / MODEL_CARD).write_text(model_card(manifest, notes), encoding="utf-8")
        _publish(stage, engine_dir, manifest)
    echo(f"published {engine_dir}")
    return parities


def _read_notes(path: Path) -> str:
    try:
        return read_bytes(path, "--notes", LARGEST_NOTES).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--notes: {path} is not text ({error}), expected a Markdown file") from None


def _gate_pair(options: ExportOptions, engine_set: EngineSet) -> tuple[str, tuple[Array, Array]]:
    """Return a description of the gate's pair, and its fixed and moving image (I, J, K) in [0, 1]."""
    if options.gate_fixed is None or options.gate_moving is None:
        shape = options.gate_shape or GENERATED_SHAPE
        return f"a generated pair {shape}", example_pair(shape)
    prepared = prepare(
        read_volume(options.gate_fixed, "--gate-fixed"),
        read_volume(options.gate_moving, "--gate-moving"),
        engine_set,
        options.rule,
    )
    shape = options.gate_shape or prepared.grid.shape
    name = f"{options.gate_fixed.name} and {options.gate_moving.name} on {shape}"
    return name, (fit_to(prepared.fixed, shape), fit_to(prepared.moving, shape))


@contextlib.contextmanager
def _staging(engine_dir: Path) -> Iterator[Path]:
    """Make a temporary folder beside the files to replace, so that renames are atomic; remove it at the end."""
    stage = temporary_name(engine_dir / "set")
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _file_name(engine: str, precision: str, graph: bytes) -> str:
    kind = "" if precision == "fp32" else f".{precision}"
    return f"{engine}{kind}.{sha256(graph)[:8]}.onnx"


def _listed(graphs: dict[str, bytes], precision: str) -> dict[str, dict[str, str]]:
    """Return the manifest's entries for the graphs of one precision."""
    return {
        engine: {"file": _file_name(engine, precision, graphs[engine]), "sha256": sha256(graphs[engine])}
        for engine in ENGINES
    }


def _manifest(checkpoint: Checkpoint, graphs: dict[str, Graphs], options: ExportOptions) -> dict[str, Any]:
    config, provenance = checkpoint.config, dict(checkpoint.provenance)
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "network": {"name": "RP-Net", **config.as_dict()},
        "precision": "fp32",
        "opset": OPSET,
        "size_multiple": SIZE_MULTIPLE,
        "spacing_mm": options.spacing,
        "intensity": options.rule.as_dict(),
        "levels": [
            {"level": level, "scale": 2 ** (level - 1), "channels": config.feature_channels[level]} for level in LEVELS
        ],
        "stop": {
            "similarity": "ncc",
            "delta": DEFAULT_DELTA["ncc"],
            "limit": DEFAULT_LIMIT,
            "on_stop": "keep",
        },
        **{GRAPH_KEYS[precision]: _listed(found, precision) for precision, found in graphs.items()},
        "licence": provenance.get("licence", "not stated"),
        "provenance": provenance,
        "exported_with": {"torch": torch.__version__, "onnx": onnx.__version__},
    }


def _write_set(folder: Path, graphs: dict[str, Graphs], manifest: dict[str, Any]) -> None:
    for precision, found in graphs.items():
        for engine, graph in found.items():
            (folder / _file_name(engine, precision, graph)).write_bytes(graph)
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def _publish(stage: Path, engine_dir: Path, manifest: dict[str, Any]) -> None:
    """Move a staged set into its folder: the graphs, the model card, then the manifest; then remove old graphs.

    File names of graphs contain their hash, so no graph of the old set is overwritten. Replacing the manifest is the
    atomic step that publishes the new set.
    """
    names = {entry["file"] for key in GRAPH_KEYS.values() for entry in manifest.get(key, {}).values()}
    for name in (*sorted(names), MODEL_CARD, MANIFEST):
        sync(stage / name)
        os.replace(stage / name, engine_dir / name)
    sync(engine_dir)
    for engine in ENGINES:
        for old in engine_dir.glob(f"{engine}.*.onnx"):
            if old.name not in names:
                old.unlink(missing_ok=True)


def model_card(manifest: dict[str, Any], notes: str) -> str:
    """Return the model card of a set as Markdown: its facts, training, parity and the given `notes`."""
    network, stop = manifest["network"], manifest["stop"]
    facts = {
        "network": f"RP-Net, {network['first_channels']} channels at level 1, {network['res_blocks']} residual blocks",
        "input": f"pairs at {manifest['spacing_mm']} mm, aligned affinely, closest RAS+ order; {_rule(manifest)}",
        "precision": f"{_precisions(manifest)}, ONNX opset {manifest['opset']}",
        "stop rule": f"IterStop: {stop['similarity']}, delta {stop['delta']}, limit {stop['limit']}, {stop['on_stop']}",
        "licence of the weights": manifest["licence"],
        "created": manifest["created"],
    }
    lines = ["# Model card", "", *_table(facts), "", "## Training", "", *_training(manifest["provenance"])]
    lines += ["", "## Parity with the PyTorch reference", "", *_parity(manifest)]
    return "\n".join([*lines, "", *([notes.strip(), ""] if notes.strip() else [])])


def _parity(manifest: dict[str, Any]) -> list[str]:
    """Return the gate's measurements as a table with one row per registration and precision."""
    columns = ("precision", "schedule", "largest difference, voxel", "mean", "iterations", "of the reference")
    lines = [_row(columns), _row(["---"] * len(columns))]
    for precision, key in PARITY_KEYS.items():
        for loop in manifest.get(key, {}).get("loops", ()):
            counts = _cell(loop["counts"]), _cell(loop["expected_counts"])
            figures = f"{loop['largest']:.1e}", f"{loop['mean']:.1e}"
            lines.append(_row((precision, loop["schedule"], *figures, *counts)))
    return lines


def _training(provenance: dict[str, Any]) -> list[str]:
    """Return the last run's facts, and one row for each run whose weights it started from, newest first."""
    lines = _table({key: value for key, value in provenance.items() if key not in ("licence", "started_from")})
    columns, earlier = ("steps", "seconds", "seed", "recipe"), provenance.get("started_from")
    if earlier:
        lines += ["", "Started from, newest first:", "", _row(columns), _row(["---"] * len(columns))]
    while earlier:
        lines.append(_row(_cell(earlier.get(column, "")) for column in columns))
        earlier = earlier.get("started_from")
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(facts: dict[str, Any]) -> list[str]:
    rows = [f"| {key.replace('_', ' ')} | {_cell(value)} |" for key, value in facts.items() if value not in ({}, None)]
    return ["| | |", "| --- | --- |", *rows]


def _precisions(manifest: dict[str, Any]) -> str:
    return " and ".join(precision for precision, key in GRAPH_KEYS.items() if key in manifest) or manifest["precision"]


def _rule(manifest: dict[str, Any]) -> str:
    fields = manifest["intensity"]
    if fields["rule"] == "window":
        return f"intensities {fields['low']:g} to {fields['high']:g} become 0 to 1, clipped"
    return f"intensities 0 to the {fields['upper']:g}th percentile of the voxels above 0 become 0 to 1, clipped"


def _cell(value: Any) -> str:
    """Return a value as the text of a table cell, nested facts written out."""
    if isinstance(value, dict):
        return "; ".join(f"{str(key).replace('_', ' ')} {_cell(entry)}" for key, entry in value.items() if entry)
    if isinstance(value, list | tuple):
        return ", ".join(f"({_cell(entry)})" if isinstance(entry, list | tuple) else _cell(entry) for entry in value)
    return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|")
