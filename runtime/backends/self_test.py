"""What opens on a GPU registers a small pair as the CPU does before anybody's scans are given to it.

An engine can be built, opened and wrong: compiled for this GPU by a library that has a fault there. The trial costs a
second and is made once for a GPU, its driver, the library and the graphs.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import NotAvailableError
from ..host.cache_folder import cache_folder, keep, keep_latest, kept
from ..host.files.hashes import short_key
from ..loop import iterstop
from ..loop.schedules import parse_schedule
from .cuda import KERNELS
from .cuda.gpu import find_gpu
from .engine_set import ENGINES, EngineSet
from .example import example_pair
from .pair import FixedSide
from .tolerance import TOLERANCES, flow_difference

SHAPE = (32, 40, 48)
SCHEDULE = "1,1,1,1"
GPUS, KEPT = "rpnet-cards", 50  # of the cache


def try_out(networks: Any, fields: Any, engine_set: EngineSet, threads: int, tell: Callable[[str], None]) -> None:
    """Holds both halves against ONNX Runtime in fp32 and numba, unless these have passed here before.

    Args:
        networks, fields: of a GPU, open, its context current.
        engine_set: that they run.
        threads: of the processor, for the other side.
        tell: told, in a line, that it takes a moment.

    Raises:
        NotAvailableError: their flow is not the CPU's.
    """
    passed = _record(networks, engine_set)
    if kept(passed):
        with contextlib.suppress(OSError):
            passed.touch()
        return
    tell(f"try {networks.library} {networks.precision} on {networks.device} (only this once)")
    from .fields.cpu import NumbaFields
    from .networks.onnxruntime import OnnxRuntimeNetworks

    expected = _registered(OnnxRuntimeNetworks(engine_set, threads), NumbaFields(threads))
    found = _registered(networks, fields)
    voxels = flow_difference(found.flow, expected.flow)
    row = {"voxels": voxels, "counts_equal": found.counts == expected.counts}
    row |= {"counts": found.counts, "expected_counts": expected.counts}
    if reason := TOLERANCES[networks.precision].refusal(row):
        raise NotAvailableError(
            f"--backend: {networks.library} {networks.version} in {networks.precision} computes something else on "
            f"{networks.device} than the CPU: {reason}; update the driver and the library, or use a backend of the CPU"
        )
    keep(passed, json.dumps(row, indent=2).encode())
    keep_latest(passed.parent.iterdir(), KEPT)


def _record(networks: Any, engine_set: EngineSet) -> Path:
    """Where it is noted that these have passed."""
    graphs = [engine_set.graph_hash(name, networks.precision) for name in ENGINES]
    facts = type(networks).__name__, networks.version, networks.precision, find_gpu(), graphs, KERNELS.read_bytes()
    return cache_folder(GPUS) / GPUS / f"{short_key(*facts)}.json"


def _registered(networks: Any, fields: Any) -> iterstop.Iterations:
    """The example, with its flow on the host."""
    fixed, moving = (fields.to_device(image) for image in example_pair(SHAPE))
    with fields.threads():
        pair = FixedSide(networks, fields, fixed, "ncc").pair(moving)
        found = iterstop.run(pair, parse_schedule(SCHEDULE))
        return iterstop.Iterations(fields.to_host(found.flow), found.passes, found.similarity)
