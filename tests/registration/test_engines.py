"""The Python interface: `Engines` gives the results of the functions it calls, pair by pair and bit for bit."""

import numpy as np
import pytest

import runtime
from runtime import InputError, Options, ScanPair
from runtime.backends.parity import example_pair
from runtime.images.volume import read_volume
from runtime.registration import engines as engines_module
from runtime.registration.arrays import register_arrays
from tests import scans

QUICK = Options(affine="none", schedule="1,1,1,1")


@pytest.fixture
def files(tmp_path):
    """Two fixed scans and two moving ones of one size, so that engines are made for one size."""
    names = ("fixed", "other", "monday", "friday")
    moves = (lambda points: points, lambda points: points + 1, scans.bend, lambda points: scans.bend(points) - 1)
    grid = scans.grid((30, 36, 28))
    return {n: scans.write_scan(tmp_path / f"{n}.nii.gz", grid, move) for n, move in zip(names, moves, strict=True)}


@pytest.fixture
def labels(tmp_path):
    return scans.write_labels(tmp_path / "labels.nii.gz", scans.grid((30, 36, 28)), scans.bend)


def same(one, other) -> bool:
    return np.array_equal(one.warped, other.warped) and np.array_equal(one.displacement, other.displacement)


def test_register_is_the_function(engines, files, labels):
    result = engines.register(files["fixed"], files["monday"], QUICK, labels=labels, fixed_mask=files["fixed"])
    earlier = runtime.register(
        files["fixed"], files["monday"], engines, QUICK, moving_labels=labels, fixed_mask=files["fixed"]
    )
    assert isinstance(result, runtime.Registration) and same(result, earlier)
    assert np.array_equal(result.warped_labels, earlier.warped_labels) and result.masks[0].path == files["fixed"]


def test_a_fixed_scan_is_made_ready_once(engines, files):
    onto = engines.prepare_fixed(files["fixed"], QUICK)
    for name in ("monday", "friday"):
        assert same(onto.register(files[name]), engines.register(files["fixed"], files[name], QUICK))
    aligned = onto.align(files["monday"])
    assert same(aligned.register(), onto.register(files["monday"])) and isinstance(aligned, runtime.ReadyPair)


class TestArrays:
    def test_options_say_what_arguments_said(self, engines):
        fixed, moving = example_pair((16, 24, 16))
        options = Options(schedule="iterstop", similarity="lncc", delta=0.01, smooth=1.0)
        schedule = runtime.parse_schedule("iterstop", delta=0.01, similarity="lncc", limit=8, on_stop="keep")
        expected = register_arrays(engines, fixed, moving, schedule, "lncc", 1.0)
        found = engines.register_arrays(fixed, moving, options)
        assert np.array_equal(found.flow, expected.flow) and found.flow.shape == (3, 16, 24, 16)

    @pytest.mark.parametrize("name, value", [("affine", "rigid"), ("window", (0.0, 9.0)), ("nan", 0.0)])
    def test_options_of_scans_are_refused(self, engines, name, value):
        with pytest.raises(InputError, match=f"^{name}: got .*, but arrays are on one grid"):
            engines.register_arrays(*example_pair((16, 16, 16)), Options(**{name: value}))


class TestPairs:
    def test_each_result_is_that_of_the_pair_alone(self, engines, files, labels):
        pairs = [
            ScanPair(files["fixed"], files["monday"], labels, name="one"),
            ScanPair(str(files["fixed"]), files["friday"]),
            ScanPair(files["other"], read_volume(files["monday"])),
        ]
        outcomes = list(engines.register_pairs(pairs, QUICK))
        assert [outcome.pair for outcome in outcomes] == pairs and not any(outcome.error for outcome in outcomes)
        for outcome in outcomes:
            pair = outcome.pair
            alone = engines.register(pair.fixed, pair.moving, QUICK, labels=pair.labels)
            assert same(outcome.result, alone)
        assert outcomes[0].result.warped_labels.any() and outcomes[1].result.warped_labels is None

    def test_a_fixed_scan_serves_the_pairs_that_follow_it(self, engines, files, monkeypatch):
        made, whole = [], engines_module.FixedScan
        monkeypatch.setattr(engines_module, "FixedScan", type("Seen", (whole,), {"__init__": _noting(whole, made)}))
        fixed = ("fixed", "fixed", "other", "fixed")
        pairs = [ScanPair(files[name], files["monday"]) for name in fixed]
        assert all(outcome.result for outcome in engines.register_pairs(pairs, QUICK))
        assert len(made) == 3

    def test_what_goes_wrong_with_one_leaves_the_others(self, engines, files, tmp_path):
        missing = tmp_path / "missing.nii.gz"
        pairs = [
            ScanPair(files["fixed"], missing),
            ScanPair(files["fixed"], files["monday"]),
            ScanPair(missing, files["monday"]),
            ScanPair(missing, files["friday"]),
            ScanPair(files["other"], files["friday"]),
        ]
        outcomes = list(engines.register_pairs(pairs, QUICK))
        assert [outcome.result is not None for outcome in outcomes] == [False, True, False, False, True]
        lines = [str(outcome.error) for outcome in outcomes if outcome.error]
        assert lines[0].startswith("--moving: ") and all(line.startswith("--fixed: ") for line in lines[1:])

    def test_pairs_are_taken_one_ahead(self, engines, files):
        taken = []

        def listed():
            for number in range(4):
                taken.append(number)
                yield ScanPair(files["fixed"], files["monday"])

        outcomes = engines.register_pairs(listed(), QUICK)
        assert taken == []
        next(outcomes)
        assert taken == [0, 1]
        outcomes.close()
        assert engines.register(files["fixed"], files["monday"], QUICK).warped.any(), "the engines are free again"

    def test_no_pairs_are_no_outcomes_and_bad_options_an_error_at_once(self, engines):
        assert list(engines.register_pairs([])) == []
        with pytest.raises(InputError, match="--similarity"):
            engines.register_pairs([], Options(similarity="beauty"))


def _noting(whole: type, made: list):
    def init(self, *arguments, **named):
        made.append(self)
        whole.__init__(self, *arguments, **named)

    return init
