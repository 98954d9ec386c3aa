"""`doctor`: what is said about two scans before any work, one fault at a time."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from runtime.backends.engine_set import load_engine_set
from runtime.backends.parity import example_pair
from runtime.errors import InputError
from runtime.geometry.grid import Grid
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.volume import Volume
from runtime.registration.batch.files import EngineChoice
from runtime.registration.batch.past_runs import expected_seconds, remember
from runtime.registration.options import Options
from runtime.workflows.checkup.examine import examine

SHAPE = (72, 88, 72)


def volume(data, spacing=2.0, shift=(0.0, 0.0, 0.0)) -> Volume:
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = shift
    return Volume(data=np.ascontiguousarray(data, np.float32), grid=Grid(data.shape, affine))


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    return 800 * np.pad(example_pair((56, 72, 56))[0], 8)


@pytest.fixture(scope="module")
def choice(engine_dir) -> EngineChoice:
    return EngineChoice(engine_dir, threads=1)


@pytest.fixture(scope="module")
def found(brain, choice):
    """The findings of a checkup of the brain with another scan, as text."""

    def examined(moving: Volume, fixed: Volume | None = None, **options) -> list[str]:
        fixed = volume(brain) if fixed is None else fixed
        return [str(finding) for finding in examine(fixed, moving, choice, Options(**options)).findings]

    return examined


def test_two_sound_scans_have_no_findings(found, brain):
    assert found(volume(brain, shift=(5, 3, 0))) == []


def test_standardised_intensities(found, brain):
    inside = brain > 0
    scan = np.where(inside, (brain - brain[inside].mean()) / brain[inside].std(), 0)
    (line,) = found(volume(scan))
    assert line.startswith("moving: ") and "standardised (z-scores); they were shifted above 0" in line


def test_ct(found, brain):
    (line,) = found(volume(np.where(brain > 0, brain / 20, -1000)))
    assert "it looks like CT; give --window" in line


def test_a_window_is_the_answer_to_ct(found, brain):
    scan = volume(np.where(brain > 0, brain / 20, -1000))
    assert found(scan, fixed=scan, window=(-100.0, 40.0)) == []


def test_a_negative(found, brain):
    lines = found(volume(800 - np.clip(brain, 0, 800)))
    assert any("has no dark background; is it inverted, or all noise?" in line for line in lines)


def test_a_saturated_scan(found, brain):
    (line,) = found(volume(np.minimum(brain, np.median(brain[brain > 0]))))
    assert "has the largest value: it is saturated" in line


def test_a_head_with_its_skull(found, brain):
    """Twice the edge is eight times the volume."""
    lines = found(volume(brain, spacing=3.5), volume_factor=(0.1, 10.0))
    assert any("more than a brain; is the skull still there?" in line for line in lines)
    assert any("; check whether only one of them is skull-stripped" in line for line in lines)


def test_another_size_than_the_limits_allow(found, brain):
    (line,) = found(volume(brain, spacing=1.2))
    assert "times the volume of the fixed one, not 0.3 to 3" in line and "--volume-factor 0.1" in line


def test_a_mouse(found, brain):
    lines = found(volume(brain, spacing=0.2), fixed=volume(brain, spacing=0.2))
    assert len(lines) == 2 and all("voxels of the network's 1 mm grid, a head about 160" in line for line in lines)


def test_thick_slices(found, brain):
    thick = brain[:, :, ::4]
    grid = Grid(thick.shape, np.diag([2.0, 2.0, 8.0, 1.0]))
    (line,) = found(Volume(data=np.ascontiguousarray(thick, np.float32), grid=grid))
    assert "has voxels of 8 mm" in line


def test_a_partial_view_is_named_by_its_side(found, brain):
    (line,) = found(volume(brain[:, :, :44]))
    assert "ends in the body at its superior side" in line


def test_headers_apart_matter_if_they_are_trusted(found, brain):
    scan = volume(brain, shift=(150, 0, 0))
    assert found(scan) == []
    (line,) = found(scan, affine="none")
    assert "centres 150 mm apart; --affine auto aligns them first" in line


def test_what_register_refuses_is_refused(choice, brain):
    with pytest.raises(InputError, match="--moving: no voxel is above 0"):
        examine(volume(brain), volume(-brain), choice)


class TestTime:
    def test_is_expected_from_past_runs_of_the_same_kind(self, brain, choice, tmp_path, monkeypatch):
        monkeypatch.setenv("RPNET_CACHE", str(tmp_path / "cache"))
        checkup = examine(volume(brain), volume(brain), choice)
        machine = checkup.machine
        assert machine["expected_seconds"] is None
        voxels = int(np.prod(machine["working_grid"]))
        engine_set = load_engine_set(choice.engine_dir)
        engine = {name: machine[name] for name in ("backend", "precision", "threads")}
        engine["engines"] = engine_set.hashes
        for seconds in (7.0, 8.0, 90.0):
            remember(engine, "iterstop", voxels * 2, seconds)
        remember(engine, "1,1,1,1", voxels, 1.0)
        assert examine(volume(brain), volume(brain), choice).machine["expected_seconds"] == pytest.approx(4.0)

    def test_a_damaged_memory_is_no_memory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RPNET_CACHE", str(tmp_path))
        engine = {"backend": "native", "precision": "fp32", "threads": 1, "engines": {}}
        remember(engine, "iterstop", 100, 2.0)
        (file,) = tmp_path.glob("past-runs.json")
        assert expected_seconds(engine, "iterstop", 50) == pytest.approx(1.0)
        file.write_bytes(file.read_bytes()[:-5])
        assert expected_seconds(engine, "iterstop", 50) is None


class TestCommand:
    @pytest.fixture
    def files(self, brain, tmp_path):
        paths = tmp_path / "f.nii.gz", tmp_path / "m.nii.gz"
        for path in paths:
            write_volume(path, brain.astype(np.float32), volume(brain).grid)
        return [str(path) for path in paths]

    def test_text_and_json_say_the_same(self, files, engine_dir):
        arguments = ["doctor", *files, "--engine-dir", str(engine_dir), "--threads", "1"]
        text = CliRunner().invoke(cli.main, arguments)
        assert text.exit_code == 0 and "nothing speaks against a registration" in text.stdout
        facts = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stdout)
        assert facts["findings"] == []
        assert f"foreground {facts['fixed']['foreground_ml']:.0f} ml" in text.stdout

    def test_a_missing_scan_is_one_line(self, files, engine_dir):
        result = CliRunner().invoke(cli.main, ["doctor", files[0], "none.nii.gz", "--engine-dir", str(engine_dir)])
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: --moving: none.nii.gz does not exist")
