"""Self-test of a GPU backend: it must register a small example pair like the CPU before it is given any scan.

An engine can be built and opened and still compute wrong results, if the library that compiled it for this GPU has a
bug. The self-test takes a second and runs once for each combination of GPU, driver, library and graphs.
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
from ..loop.stop_rules import parse_schedule
from ..loop.trace import Iterations
from .cuda import KERNELS
from .cuda.gpu import find_gpu
from .engine_set import ENGINES, EngineSet
from .pair import FixedSide
from .parity import TOLERANCES, example_pair, flow_difference

SHAPE = (32, 40, 48)
SCHEDULE = "1,1,1,1"
GPUS, KEPT = "rpnet-cards", 50  # subfolder of the cache folder; number of records kept


def self_test(networks: Any, fields: Any, engine_set: EngineSet, threads: int, progress: Callable[[str], None]) -> None:
    """Compare networks and field operations on a GPU with ONNX Runtime in fp32 and numba, unless they passed before.

    Args:
        networks, fields: open on a GPU whose context is current.
        engine_set: the set that they run.
        threads: CPU threads for the reference run.
        progress: function that prints a line before the self-test starts.

    Raises:
        NotAvailableError: their flow differs from the CPU's by more than the tolerance.
    """
    passed = _record(networks, engine_set)
    if kept(passed):
        with contextlib.suppress(OSError):
            passed.touch()  # the oldest records are removed first
        return
    progress(f"test {networks.library} {networks.precision} on {networks.device} (only this once)")
    from .fields.cpu import NumbaFields
    from .networks.onnxruntime import OnnxRuntimeNetworks

    expected = _registered(OnnxRuntimeNetworks(engine_set, threads), NumbaFields(threads))
    found = _registered(networks, fields)
    voxels = flow_difference(found.flow, expected.flow)
    row = {"voxels": voxels, "counts_equal": found.counts == expected.counts}
    row |= {"counts": found.counts, "expected_counts": expected.counts}
    if reason := TOLERANCES[networks.precision].refusal(row):
        raise NotAvailableError(
            f"--backend: {networks.library} {networks.version} in {networks.precision} gives different results on "
            f"{networks.device} than on the CPU: {reason}; update the driver and the library, or use a CPU backend"
        )
    keep(passed, json.dumps(row, indent=2).encode())
    keep_latest(passed.parent.iterdir(), KEPT)


def _record(networks: Any, engine_set: EngineSet) -> Path:
    """Return the path of the file that records a passed self-test; its name depends on all facts that matter."""
    graphs = [engine_set.graph_hash(name, networks.precision) for name in ENGINES]
    facts = type(networks).__name__, networks.version, networks.precision, find_gpu(), graphs, KERNELS.read_bytes()
    return cache_folder(GPUS) / GPUS / f"{short_key(*facts)}.json"


def _registered(networks: Any, fields: Any) -> Iterations:
    """Register the example pair and return the result with its flow on the host."""
    fixed, moving = (fields.to_device(image) for image in example_pair(SHAPE))
    with fields.threads():
        pair = FixedSide(networks, fields, fixed, "ncc").pair(moving)
        found = iterstop.run(pair, parse_schedule(SCHEDULE))
        return Iterations(fields.to_host(found.flow), found.passes, found.similarity)
