"""How scans are prepared: what a user may choose, the presets, and what is refused before any work."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...geometry.grid import SIZE_MULTIPLE, is_network_shape
from ...images.intensity import PercentileRule, Rule, WindowRule
from ...images.mni152 import NAME as MNI152
from ...types import Shape

FIRST = "first"
AFFINES = ("auto", "rigid", "centre", "none")

# As the data sets of the paper: brains at 1 mm; abdomens at 2.5 mm, in a window that tells organs from fat.
PRESETS: dict[str, dict[str, Any]] = {
    "mindboggle": {"reference": MNI152, "shape": (160, 192, 160), "spacing": 1.0},
    "flare": {"reference": FIRST, "shape": (128, 128, 96), "spacing": 2.5, "window": (-200.0, 300.0)},
}


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    Attributes:
        data: folder, glob or CSV of native scans; see `runtime.images.scan_list`.
        output: folder for the results.
        reference: what every scan is aligned with: "mni152", "first" (of the list) or a file.
        shape: (I, J, K) of the results, multiples of 8.
        spacing: of the results along every axis, mm.
        window: (low, high) intensities mapped to [0, 1], for CT; None: the percentile rule.
        percentile: of the voxels above 0 that is mapped to 1; None: that of `PercentileRule`.
        affine: "auto" (as `register`: centres of mass, rigid, affine), "rigid", "centre" (centres of mass) or "none".
        nan: the intensity that NaN stands for; None: there may be none.
        jobs: scans in preparation at a time, each in a process of its own; None: as many as cores and memory allow.

    Raises:
        InputError: a value that cannot be meant.
    """

    data: str
    output: Path
    reference: str
    shape: Shape
    spacing: float = 1.0
    window: tuple[float, float] | None = None
    percentile: float | None = None
    affine: str = "auto"
    jobs: int | None = None
    nan: float | None = None

    def __post_init__(self) -> None:
        if not is_network_shape(self.shape):
            raise InputError(f"--shape: got {self.shape}, expected three multiples of {SIZE_MULTIPLE}")
        if not (np.isfinite(self.spacing) and self.spacing > 0):
            raise InputError(f"--spacing: got {self.spacing}, expected mm above 0")
        if self.affine not in AFFINES:
            raise InputError(f"--affine: got {self.affine!r}, expected one of {', '.join(AFFINES)}")
        if self.window is not None and self.percentile is not None:
            raise InputError("--percentile: is for images without --window; give one of the two")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs: got {self.jobs}, expected 1 or more")
        _ = self.rule

    @property
    def rule(self) -> Rule:
        """From intensities to [0, 1]."""
        if self.window is not None:
            return WindowRule(*self.window)
        return PercentileRule() if self.percentile is None else PercentileRule(self.percentile)

    def of_a_scan(self) -> dict[str, Any]:
        """The choices that a scan's result depends on, beside the files themselves; plain types."""
        chosen = asdict(self)
        facts = {name: chosen[name] for name in ("shape", "spacing", "affine")}
        facts |= {} if self.nan is None else {"nan": self.nan}  # absent as before, so that what is done stays done
        return facts | {"shape": list(self.shape), "intensity": self.rule.as_dict()}


def prepare_options(preset: str | None, **choices: Any) -> PrepareOptions:
    """`PrepareOptions` of a preset; `choices` that are not None count instead of the preset's.

    Raises:
        InputError: see `PrepareOptions`; there is neither a preset nor what it would have said.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    given = {name: value for name, value in choices.items() if value is not None}
    values = {**PRESETS.get(preset, {}), **given}
    if "percentile" in given and "window" not in given:
        values.pop("window", None)
    for name in ("reference", "shape"):
        if name not in values:
            raise InputError(f"--{name}: is missing; give it, or --preset {' or '.join(PRESETS)}, which says it")
    return PrepareOptions(**values)
