"""The torch-free runtime: engines in, one aligned scan out.

    import runtime

    with runtime.open_engines("engines/") as engines:
        result = runtime.register("fixed.nii.gz", "moving.nii.gz", engines)
        result.save("aligned/")

One fixed scan that serves several moving ones is a `FixedScan`; `register_arrays` and `register_many` take images that
are prepared already, also in a card's memory.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

import importlib

_HOME = {
    "InputError": ".errors",
    "open_engines": ".backends.engines",
    "FixedScan": ".registration.scans",
    "Options": ".registration.options",
    "register": ".registration.scans",
    "register_arrays": ".registration.arrays",
    "register_many": ".registration.concurrent",
    "Registration": ".registration.scans",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
