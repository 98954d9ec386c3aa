"""The benchmark: first that an engine computes the right flow, then how long it takes, on what, and why.

Every contender lives in a process of its own and waits while another one runs, so that no library's threads disturb
another's and each one's peak memory is its own. `run_benchmark` returns one record of plain types; everything that is
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
