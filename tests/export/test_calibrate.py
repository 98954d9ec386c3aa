"""Limits fitted to cases with a known outcome, and kept in an engine set's manifest."""

import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from export.calibrate import Case, calibrate, fit, read_cases, tried
from measurements.quality.run import Records
from runtime.backends.engine_set import load_engine_set
from runtime.errors import InputError
from tests.registration.test_quality import plausible


def records(half: str, seed: int, sound: int = 60, bad: int = 40) -> list[dict]:
    """Return records in which failed cases are rough, or do not overlap after the affine."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(sound + bad):
        failed = number >= sound
        changes = {"sd_log_jacobian": rng.uniform(0.5, 0.8), "overlap_affine": rng.uniform(0.85, 0.9)}
        changes |= {"fixed_size": rng.uniform(1000, 1500), "detail_affine": math.nan}
        if failed:
            changes |= {"sd_log_jacobian": 1.5} if number % 2 else {"overlap_affine": 0.4}
        facts = {"name": f"{half}{number}", "kind": "any", "level": "", "half": half}
        found.append({**facts, "ratio": 0.3 if failed else 1.0, **plausible(**changes).as_dict()})
    return found


def cases_from(rows: list[dict]) -> list[Case]:
    """Return the cases of records, by way of their file."""
    with tempfile.TemporaryDirectory() as folder:
        return read_cases(written(Path(folder) / "cases.csv", rows))


def written(path: Path, rows: list[dict]) -> Path:
    """Write records as measurements.quality does."""
    records = Records(path)
    for row in rows:
        records.write(row)
    return path


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "cases.csv", [*records("a", 1), *records("b", 2)])


def test_the_figures_that_tell_them_apart_are_found():
    rule = fit(cases_from(records("a", 1)))
    weights = {term.figure: term.weight for term in rule.score.terms}
    assert weights["sd_log_jacobian"] > 0 > weights["overlap_affine"]
    assert set(weights) <= {"sd_log_jacobian", "overlap_affine", "fixed_size"}  # the only ones that differ at all
    table = tried(cases_from(records("b", 2)), rule)
    assert table.bad_failed == table.bad == 40
    assert table.sound_failed == 0 and table.sound_looked <= 2


def test_weak_evidence_of_several_figures_adds_up():
    """Failed cases in which no figure is beyond what sound ones reach, but all lean the same way."""
    rng = np.random.default_rng(5)
    names = ("sd_log_jacobian", "correlation", "local", "local_low", "overlap")
    rows = []
    for number in range(200):
        lean = 1.2 * (number % 2)
        noise = rng.standard_normal(len(names)) - lean
        changes = {name: 0.93 + 0.01 * value for name, value in zip(names, noise, strict=True)}
        changes["sd_log_jacobian"] = 0.8 - 0.01 * noise[0]
        facts = {"name": str(number), "kind": "any", "level": "", "half": "a", "ratio": 0.3 if lean else 1.0}
        rows.append({**facts, **plausible(**changes).as_dict()})
    cases = cases_from(rows)
    table = tried(cases, fit(cases))
    assert table.bad_found > 0.85 * table.bad and table.sound_failed < 0.1 * table.sound
    single = [case.figures.local for case in cases if case.bad]
    assert np.mean(np.array(single) < min(case.figures.local for case in cases if case.sound)) < 0.5


def test_a_figure_that_is_left_out_has_no_term():
    rule = fit(cases_from(records("a", 1)), without=["sd_log_jacobian"])
    assert "sd_log_jacobian" not in {term.figure for term in rule.score.terms}


def test_cases_in_between_count_neither_way():
    between = records("a", 1)
    for record in between[:5]:
        record["ratio"] = 0.9
        record["sd_log_jacobian"] = 3.0
    assert tried(cases_from(between), fit(cases_from(between))).sound == 55


def test_a_refused_case_was_found():
    refused = {"name": "r", "kind": "any", "half": "a", "ratio": 0.0, "refused": "constant"}
    cases = cases_from([*records("a", 1), refused])
    assert tried(cases, fit(cases)).bad_failed == 41


def test_the_manifest_holds_limits_and_counts_and_its_hash(file, engine_dir, tmp_path):
    copied = tmp_path / "set"
    shutil.copytree(engine_dir, copied)
    limits = calibrate(file, copied, "b")
    engine_set = load_engine_set(copied)  # checks the hash of the manifest
    assert engine_set.verdict_limits == limits
    assert engine_set.hashes == load_engine_set(engine_dir).hashes
    assert limits.calibration["tested"] == {
        "sound": 60,
        "bad": 40,
        "sound_failed": 0,
        "sound_looked": limits.calibration["tested"]["sound_looked"],
        "bad_failed": 40,
        "bad_found": 40,
    }


def test_too_few_cases_are_refused():
    with pytest.raises(InputError, match="got 5 sound and 5 failed cases, expected 20 of each"):
        fit(cases_from(records("a", 1, sound=5, bad=5)))


def test_a_half_that_is_not_there_is_refused(file, engine_dir):
    with pytest.raises(InputError, match="--test-half: got 'c', expected one of a, b"):
        calibrate(file, engine_dir, "c")


def test_records_without_a_figure_are_refused(file):
    file.write_text(file.read_text().replace("sd_log_jacobian", "beauty"))
    with pytest.raises(InputError, match="line 2 has no usable figures"):
        read_cases(file)


def test_a_missing_file_is_refused(tmp_path, engine_dir):
    with pytest.raises(InputError, match="--cases: "):
        calibrate(tmp_path / "none.csv", engine_dir, None)


def test_the_unfinished_line_of_a_killed_run_is_made_again(file):
    whole = read_cases(file)
    file.write_text(file.read_text()[:-40])
    assert len(read_cases(file)) == len(whole) - 1
    records_now = Records(file)
    assert not records_now.has(whole[-1]) and records_now.has(whole[0])
    records_now.write(records("b", 2)[-1])
    assert [case.name for case in read_cases(file)] == [case.name for case in whole]
