"""The checkup as text for people."""

from .examine import Checkup
from .scan import ExaminedScan


def text_of(checkup: Checkup) -> str:
    """Return a few lines on the scans, the pair and the machine, then the findings."""
    pair, machine = checkup.pair, checkup.machine
    memory = f"{machine['needed_bytes'] / 2**30:.1f} GiB"
    if machine["available_bytes"] is not None:
        memory += f" of {machine['available_bytes'] / 2**30:.1f} GiB available"
    expected = machine["expected_seconds"]
    time = (
        "not known before the first registration"
        if expected is None
        else f"about {expected:.0f} s before writing, as earlier"
    )
    lines = [
        _scan_line(checkup.fixed),
        _scan_line(checkup.moving),
        f"by headers  {pair['overlap_by_headers']:.0%} of the fixed body inside the moving scan, centres "
        f"{pair['centres_apart_mm']:.0f} mm apart (--affine {pair['affine']})",
        f"engines     {machine['backend']}, {machine['precision']}, {machine['threads']} threads ({machine['reason']})",
        f"memory      {memory}; working grid {' x '.join(map(str, machine['working_grid']))}",
        f"time        {time}",
    ]
    lines += [f"finding     {finding}" for finding in checkup.findings]
    return "\n".join([*lines, *([] if checkup.findings else ["finding     nothing speaks against a registration"])])


def _scan_line(scan: ExaminedScan) -> str:
    facts = scan.facts
    shape = "x".join(map(str, facts["shape"]))
    spacing = " x ".join(f"{size:.3g}" for size in facts["spacing_mm"])
    return (
        f"{scan.name:10}  {shape} voxels of {spacing} mm, {facts['orientation']}; foreground "
        f"{facts['foreground_ml']:.0f} ml, {' x '.join(f'{size:.0f}' for size in facts['foreground_mm'])} mm; "
        "intensities "
        f"{facts['intensities']['percentile_1']:.4g} to {facts['intensities']['percentile_99']:.4g}"
    )
