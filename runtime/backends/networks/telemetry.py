"""Libraries that would report to their makers what they are used for are imported without the part that does."""

import contextlib
import os
import sys
from collections.abc import Iterator

# ONNX Runtime from 1.27 on reads the one or the other, once, and reports natively otherwise.
OPT_OUT = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
PACKAGES = ("openvino_telemetry",)


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """For the import of an engine library.

    ONNX Runtime is told so by its variables, which stay set. OpenVINO finds its package for it not installed, and takes
    a stand-in that does nothing. Otherwise these would look up hosts on the internet, leave an identity in the home
    folder, and OpenVINO would fail for users who have none.
    """
    os.environ.update(dict.fromkeys(OPT_OUT, "1"))
    hidden = {name: sys.modules.get(name) for name in PACKAGES}
    sys.modules.update(dict.fromkeys(PACKAGES))
    try:
        yield
    finally:
        for name, module in hidden.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
