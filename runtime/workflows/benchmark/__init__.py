"""The benchmark: first the accuracy of each engine's flow, then its speed, the machine, and where the time goes.

Every contender has its own process and waits while another one runs, so that threads of one library do not disturb
another and peak memory is measured per contender. `run_benchmark` returns one record of plain types; everything that is
printed or drawn is made from that record.
"""

import importlib

_HOME = {
    "BenchmarkOptions": "options",
    "parse_names": "options",
    "parse_shapes": "options",
    "render": "report.text",
    "run_benchmark": "run",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
