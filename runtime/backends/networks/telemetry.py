"""Import of engine libraries without their telemetry."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

# ONNX Runtime from 1.27 on reads either of these, once, and otherwise sends reports from native code.
OPT_OUT = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
PACKAGES = ("openvino_telemetry",)


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Disable telemetry while an engine library is imported.

    ONNX Runtime reads environment variables, which stay set. OpenVINO finds its telemetry package missing and uses a
    stub that does nothing. Otherwise these libraries would look up hosts on the internet and write an identifier to the
    home folder, and OpenVINO would fail for users without a home folder.
    """
    os.environ.update(dict.fromkeys(OPT_OUT, "1"))
    hidden = {name: sys.modules.get(name) for name in PACKAGES}
    nothing: dict[str, Any] = dict.fromkeys(PACKAGES)  # None makes an import raise ModuleNotFoundError
    sys.modules.update(nothing)
    try:
        yield
    finally:
        for name, module in hidden.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
