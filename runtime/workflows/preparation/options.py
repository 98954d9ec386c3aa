"""Options of the preparation: what a user may choose, the presets, and checks made before any work."""

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

# The data sets of the paper: brains at 1 mm; abdomens at 2.5 mm, in a window that separates organs from fat.
PRESETS: dict[str, dict[str, Any]] = {
    "mindboggle": {"reference": MNI152, "shape": (160, 192, 160), "spacing": 1.0},
    "flare": {"reference": FIRST, "shape": (128, 128, 96), "spacing": 2.5, "window": (-200.0, 300.0)},
}


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare_scans`.

    Attributes:
        data: folder, glob or CSV of native scans; see `runtime.images.scan_list`.
        output: folder for the results.
        reference: the scan that every scan is aligned with: "mni152", "first" (of the list) or a file.
        shape: (I, J, K) of the results, multiples of 8.
        spacing: voxel size of the results along every axis, mm.
        window: (low, high) intensities mapped to [0, 1], for CT; None: the percentile rule.
        percentile: of the voxels above 0, mapped to 1; None: that of `PercentileRule`.
        affine: "auto" (as `register`: centres of mass, rigid, affine), "rigid", "centre" (centres of mass) or "none".
        jobs: scans prepared at a time, each in its own process; None: as many as cores and memory allow.
        nan: the intensity that replaces NaN; None: NaN is refused.

    Raises:
        InputError: invalid value.
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
            raise InputError("--percentile: cannot be combined with --window; give one of the two")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs: got {self.jobs}, expected 1 or more")
        _ = self.rule

    @property
    def rule(self) -> Rule:
        """The rule that maps intensities to [0, 1]."""
        if self.window is not None:
            return WindowRule(*self.window)
        return PercentileRule() if self.percentile is None else PercentileRule(self.percentile)

    def of_a_scan(self) -> dict[str, Any]:
        """Return the options that the result of a scan depends on, besides the files themselves; plain types."""
        chosen = asdict(self)
        facts = {name: chosen[name] for name in ("shape", "spacing", "affine")}
        # Left out where it is None, as before the option existed: earlier results stay valid.
        facts |= {} if self.nan is None else {"nan": self.nan}
        return facts | {"shape": list(self.shape), "intensity": self.rule.as_dict()}


def prepare_options(preset: str | None, **choices: Any) -> PrepareOptions:
    """Return the `PrepareOptions` of a preset; `choices` that are not None override it.

    Raises:
        InputError: see `PrepareOptions`; or an option without default is missing and no preset sets it.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    given = {name: value for name, value in choices.items() if value is not None}
    values = {**({} if preset is None else PRESETS[preset]), **given}
    if "percentile" in given and "window" not in given:
        values.pop("window", None)
    for name in ("reference", "shape"):
        if name not in values:
            raise InputError(f"--{name}: is missing; give it, or --preset {' or '.join(PRESETS)}, which sets it")
    return PrepareOptions(**values)
