"""The code of docs/guide/python.md, run line by line as it stands, on scans of its names."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.backends.parity import example_pair
from tests import scans

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guide" / "python.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, engines, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "rpnet", runtime)
    grid = scans.grid((30, 36, 28))
    for name in ("target", "scan", "monday", "friday"):
        scans.write_scan(tmp_path / f"{name}.nii.gz", grid, scans.bend)
        scans.write_labels(tmp_path / f"{name}_labels.nii.gz", grid, scans.bend)
    runtime.write_transform("0GenericAffine.mat", runtime.AffineTransform(np.eye(4)), "itk", None, None)
    fixed, moving = example_pair((16, 16, 16))
    first, *others = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"names": ("monday", "friday"), "fixed": fixed, "moving": moving}
    exec(compile(first, "first block", "exec"), names)
    names["engines"] = engines  # the ones opened in the first block are closed by now
    for number, block in enumerate(others, start=2):
        exec(compile(block, f"block {number}", "exec"), names)
    assert not any(outcome.error for outcome in engines.register_pairs(names["pairs"]))
    saved = ("aligned/warp.nii.gz", "aligned/monday/report.json", "aligned/friday/report.json", "affine.lta")
    assert all((tmp_path / name).is_file() for name in (*saved, "on_target.nii.gz"))
    assert names["found"].flow.shape == (3, 16, 16, 16) and "on_target.nii.gz" in capsys.readouterr().out
