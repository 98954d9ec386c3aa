"""Intensity rules: the values they map to 0 and 1, the images they refuse, and the foreground that results."""

import json

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.images.intensity import (
    FOREGROUND,
    PercentileRule,
    WindowRule,
    foreground_mask,
    is_standardised,
    rule_from_dict,
)


def ramp() -> np.ndarray:
    """1 .. 1000 in a corner of zeros."""
    data = np.zeros((20, 20, 20), np.float32)
    data[:10, :10, :10] = np.arange(1, 1001).reshape(10, 10, 10)
    return data


def test_the_percentile_is_that_of_the_foreground_alone():
    data = ramp()
    normalised = PercentileRule(upper=90).normalise(data)
    top = np.percentile(np.arange(1, 1001), 90)
    assert normalised == pytest.approx(np.clip(data / top, 0, 1), abs=1e-6)
    assert normalised.dtype == np.float32 and normalised.min() == 0 and normalised.max() == 1


def test_scale_does_not_matter_and_negative_values_are_background():
    data = ramp() - 5
    assert PercentileRule().normalise(data * 1000) == pytest.approx(PercentileRule().normalise(data), abs=1e-6)
    assert PercentileRule().normalise(data)[-1, -1, -1] == 0


def test_a_window_maps_its_ends_to_0_and_1():
    data = np.linspace(-1000, 1000, 4000, dtype=np.float32).reshape(10, 20, 20)
    expected = np.clip((data + 200) / 500, 0, 1)
    assert WindowRule(-200, 300).normalise(data) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rule", [PercentileRule(99.5), WindowRule(-200.0, 300.0)])
def test_a_rule_survives_json(rule):
    assert rule_from_dict(json.loads(json.dumps(rule.as_dict()))) == rule


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"rule": "histogram"}, "got rule 'histogram', expected percentile or window"),
        ({"upper": 99.0}, "got rule None, expected percentile or window"),
        ({"rule": "window", "low": 0}, "got rule window with {'low': 0}, expected low and high, finite"),
        ({"rule": "percentile", "lower": 1}, "got rule percentile with {'lower': 1}, expected upper"),
        ({"rule": "percentile", "upper": "much"}, "with {'upper': 'much'}, expected upper, above 0"),
        ({"rule": "percentile", "upper": 0}, "with {'upper': 0}, expected upper, above 0 and at most 100"),
        ({"rule": "window", "low": 5, "high": 5}, "expected low and high, finite, low below high"),
    ],
)
def test_unknown_rules_are_refused(fields, fault):
    with pytest.raises(InputError, match=f"^intensity: {fault}" if fault.startswith("got") else fault):
        rule_from_dict(fields)


def test_a_refused_rule_names_the_option():
    with pytest.raises(InputError, match=r"^--percentile: got 0, expected above 0 and at most 100, such as 99\.9"):
        PercentileRule(0)
    with pytest.raises(InputError, match=r"^--window: got 300,-200, expected two finite numbers, the lower one first"):
        WindowRule(300.0, -200.0)


@pytest.mark.parametrize(
    ("rule", "data", "fault"),
    [
        (PercentileRule(), -ramp(), "--fixed: no voxel is above 0"),
        (PercentileRule(), np.full((4, 4, 4), 7.0, np.float32), "--fixed: every voxel is 1"),
        (WindowRule(-200, 300), np.full((4, 4, 4), -1000.0, np.float32), "--fixed: every voxel is 0"),
    ],
)
def test_images_without_contrast_are_refused(rule, data, fault):
    with pytest.raises(InputError, match=fault):
        rule.normalise(data, "--fixed")


def test_the_foreground_keeps_the_object_and_drops_specks():
    data = np.zeros((48, 40, 44), np.float32)
    data[16:33, 10:31, 13:30] = 0.8
    expected = data > 0
    data[2, 2, 2] = data[45, 38, 40] = data[3, 30, 5] = 1
    assert np.array_equal(foreground_mask(data), expected)
    assert np.array_equal(PercentileRule().foreground(data), expected)


def test_thin_and_tiny_objects_are_foreground_too():
    line = np.zeros((30, 30, 30), np.float32)
    line[15, 3:28, 15] = 1
    assert np.array_equal(foreground_mask(line), line > 0)
    tiny = np.zeros((7, 5, 3), np.float32)
    tiny[2:5, 1:4, 1] = 1
    assert np.array_equal(foreground_mask(tiny), tiny > 0)


class TestStandardised:
    """z-scores inside a mask: nothing of the brain may be taken for background."""

    @staticmethod
    def brain() -> np.ndarray:
        rng = np.random.default_rng(4)
        image = np.zeros((40, 40, 40), np.float32)
        image[8:32, 8:32, 8:32] = rng.gamma(9, 40, (24, 24, 24))
        return image

    def z_scored(self) -> np.ndarray:
        image = self.brain()
        inside = image > 0
        return np.where(inside, (image - image[inside].mean()) / image[inside].std(), 0).astype(np.float32)

    def test_are_recognised(self):
        assert is_standardised(self.z_scored())
        assert not is_standardised(self.brain())

    def test_nor_are_hounsfield_units_or_z_scores_of_the_whole_image(self):
        image = self.brain()
        assert not is_standardised(np.where(image > 0, image / 10 - 20, -1000).astype(np.float32))
        assert not is_standardised((image - image.mean()) / image.std())

    def test_are_normalised_as_the_scan_before(self):
        before, after = (PercentileRule().normalise(image) for image in (self.brain(), self.z_scored()))
        inside = before > 0
        assert np.array_equal(after > FOREGROUND, inside)
        assert np.all(after[~inside] == 0)
        assert np.corrcoef(before[inside], after[inside])[0, 1] > 0.999
        assert after.max() == 1

    def test_the_scan_itself_stays_as_it_is(self):
        image = self.z_scored()
        kept = image.copy()
        PercentileRule().normalise(image)
        assert np.array_equal(image, kept)
