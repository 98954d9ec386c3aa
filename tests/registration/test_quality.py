"""Figures on a registration, against their definitions, and the verdict that limits give."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from runtime.backends.parity import example_pair
from runtime.backends.verdict_limits import CONSERVATIVE, MEANINGS, Limit, Score, Term, VerdictLimits, limits_of
from runtime.geometry.grid import Grid
from runtime.registration.quality.figures import Figures, Seen, figures
from runtime.registration.quality.verdict import FAILED, LOOK, OK, judge

SHAPE = (32, 40, 48)
SPACING = 2.0


def seen(**changes) -> Seen:
    fixed, moving = example_pair(SHAPE)
    flow = np.stack([gaussian_filter(np.random.default_rng(n).normal(0, 60, SHAPE), 3) for n in range(3)])
    start = Seen(
        fixed=fixed,
        moving=moving,
        warped=np.clip(0.9 * fixed + 0.1 * moving, 0, 1).astype(np.float32),
        holes=(None, None),
        flow=flow.astype(np.float32),
        grid=Grid(SHAPE, np.diag([SPACING] * 3 + [1.0])),
        affine=np.diag([1.1, 0.9, 1.2, 1.0]),
        affine_facts={"detail_after": 0.25},
    )
    return dataclasses.replace(start, **changes)


def plausible(**changes) -> Figures:
    """Figures of a sound registration, with changes."""
    values = dict.fromkeys((field.name for field in dataclasses.fields(Figures)), 0.0)
    values |= {"correlation": 0.95, "overlap": 0.97, "sd_log_jacobian": 0.6, "fixed_size": 1000.0}
    return Figures(**{**values, **changes})


class TestFigures:
    def test_correlations_inside_the_foreground(self):
        pair = seen()
        body = pair.fixed > 0.05
        found = figures(pair)
        for name, image in (("correlation_affine", pair.moving), ("correlation", pair.warped)):
            expected = np.corrcoef(pair.fixed[body], image[body])[0, 1]
            assert getattr(found, name) == pytest.approx(expected, abs=1e-5)

    def test_local_correlations_are_those_of_blocks(self):
        pair = seen()
        body = pair.fixed > 0.05
        values = []
        for corner in np.ndindex(4, 5, 6):
            block = tuple(slice(8 * n, 8 * n + 8) for n in corner)
            if body[block].mean() >= 0.5 and pair.fixed[block][body[block]].var() > 1e-4:
                values.append(np.corrcoef(pair.fixed[block][body[block]], pair.warped[block][body[block]])[0, 1])
        found = figures(pair)
        assert len(values) > 20
        assert found.local == pytest.approx(np.median(values), abs=1e-4)
        assert found.local_low == pytest.approx(np.percentile(values, 10), abs=1e-4)

    def test_roughness_and_folds_are_those_of_the_flow(self):
        pair = seen()
        slopes = np.stack([np.stack(np.gradient(component.astype(float))) for component in pair.flow])
        matrices = np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3)
        determinant = np.linalg.det(matrices)
        inside = determinant[pair.fixed > 0.05]
        found = figures(pair)
        assert found.sd_log_jacobian == pytest.approx(np.std(np.log(inside[inside > 0])), rel=1e-3)
        assert found.folded_share == pytest.approx(np.mean(inside <= 0), abs=1e-4)
        assert 0 < found.folded_share < 0.5

    def test_lengths_sizes_and_the_affine(self):
        pair = seen()
        lengths = SPACING * np.linalg.norm(pair.flow, axis=0)[pair.fixed > 0.05]
        found = figures(pair)
        assert found.flow_mm == pytest.approx(lengths.mean(), rel=1e-5)
        assert found.flow_high_mm == pytest.approx(np.percentile(lengths, 95), rel=1e-5)
        assert found.volume_factor == pytest.approx(1.1 * 0.9 * 1.2)
        assert found.stretch == pytest.approx(1.2 / 0.9)
        assert found.fixed_size == pytest.approx(np.count_nonzero(pair.fixed > 0.05) / 1000)
        assert found.detail_affine == 0.25

    def test_a_constant_volume_change_is_no_spread(self):
        i = np.indices(SHAPE).astype(np.float32)
        found = figures(seen(flow=0.1 * i))
        assert found.sd_log_jacobian == pytest.approx(0, abs=1e-4)
        assert found.sd_log_volume == pytest.approx(0, abs=1e-4)

    def test_holes_do_not_count(self):
        """Whatever an image holds in a hole changes no figure but the share that is not seen."""
        hole = np.zeros(SHAPE, bool)
        hole[:, :, 30:] = True
        pair = seen(holes=(None, hole))
        other = np.where(hole, 0.7, pair.moving).astype(np.float32)
        found, again = figures(pair), figures(dataclasses.replace(pair, moving=other))
        body = pair.fixed > 0.05
        assert found.unseen_share == pytest.approx(np.mean(hole[body]))
        for name in ("correlation_affine", "local_affine", "overlap_affine", "moving_fine"):
            assert getattr(found, name) == getattr(again, name), name

    def test_noise_and_smoothness_show_in_fine_structure(self):
        pair = seen()
        rng = np.random.default_rng(3)
        noisy = np.where(pair.moving > 0, rng.random(SHAPE), 0).astype(np.float32)
        smooth = gaussian_filter(pair.moving, 5)
        shares = [figures(seen(moving=image)).moving_fine for image in (smooth, pair.moving, noisy)]
        assert shares[0] < shares[1] < shares[2]
        assert shares[2] > 0.8

    def test_what_cannot_be_computed_is_nan(self):
        found = figures(seen(affine_facts={}, fixed=np.zeros(SHAPE, np.float32)))
        assert math.isnan(found.detail_affine) and math.isnan(found.sd_log_jacobian)


class TestVerdict:
    LIMITS = VerdictLimits((Limit("sd_log_jacobian", "above", 0.9, 1.1), Limit("overlap", "below", 0.9, 0.8)))

    @pytest.mark.parametrize(
        ("changes", "verdict"),
        [
            ({}, OK),
            ({"sd_log_jacobian": 1.0}, LOOK),
            ({"sd_log_jacobian": 1.2}, FAILED),
            ({"sd_log_jacobian": 0.9}, OK),
            ({"overlap": 0.85}, LOOK),
            ({"overlap": 0.7, "sd_log_jacobian": 1.0}, FAILED),
            ({"sd_log_jacobian": math.nan}, OK),
            ({"correlation": math.nan}, FAILED),
        ],
    )
    def test_is_the_worst_of_all_limits(self, changes, verdict):
        assert judge(plausible(**changes), self.LIMITS).verdict == verdict

    def test_the_worst_reason_is_named_first(self):
        found = judge(plausible(overlap=0.7, sd_log_jacobian=1.0), self.LIMITS)
        assert [reason.split(":")[0] for reason in found.reasons] == [
            MEANINGS["overlap"][1],
            MEANINGS["sd_log_jacobian"][1],
        ]
        assert "0.7, expected at least 0.9" in str(found)

    SCORE = Score(
        -1.0,
        (
            Term("sd_log_jacobian", True, math.log(0.7), 0.2, 1.0, 0.7),
            Term("local", False, 0.9, 0.05, -1.0, 0.9),
        ),
    )

    @pytest.mark.parametrize(
        ("changes", "score", "verdict"),
        [
            ({"sd_log_jacobian": 0.7, "local": 0.9}, -1.0, OK),
            ({"sd_log_jacobian": 0.7, "local": 0.85}, 0.0, LOOK),
            ({"sd_log_jacobian": 0.7, "local": 0.8}, 1.0, FAILED),
            ({"sd_log_jacobian": 0.7 * math.exp(0.2), "local": 0.85}, 1.0, FAILED),
            ({"sd_log_jacobian": math.nan, "local": 0.85}, 0.0, LOOK),  # what is not known speaks neither way
        ],
    )
    def test_a_score_adds_up_several_figures(self, changes, score, verdict):
        # 1e-9: the bounds are met exactly.
        rule = VerdictLimits((), dataclasses.replace(self.SCORE, look=-1e-9, failed=1 - 1e-9))
        found = judge(plausible(**changes), rule)
        assert found.verdict == verdict
        assert found.as_dict()["score"]["value"] == pytest.approx(score)

    def test_the_largest_parts_of_a_score_are_its_reasons(self):
        found = judge(plausible(sd_log_jacobian=0.7 * math.exp(0.08), local=0.7), VerdictLimits((), self.SCORE))
        assert found.reasons == (f"{MEANINGS['local'][1]}: 0.7, usually 0.9",)  # the other part is a tenth of it

    def test_a_figure_is_a_reason_once(self):
        rule = VerdictLimits((Limit("local", "below", 0.85, 0.75),), self.SCORE)
        assert len(judge(plausible(sd_log_jacobian=0.7, local=0.7), rule).reasons) == 1

    def test_it_has_plain_facts_with_none_for_nan(self):
        facts = judge(plausible(detail_affine=math.nan), self.LIMITS).as_dict()
        assert facts["verdict"] == "ok" and facts["figures"]["detail_affine"] is None
        assert facts["limits"][0] == {"figure": "sd_log_jacobian", "side": "above", "look": 0.9, "failed": 1.1}

    def test_every_figure_that_can_have_limits_exists(self):
        assert set(MEANINGS) <= {field.name for field in dataclasses.fields(Figures)}


class TestManifest:
    def test_a_set_without_limits_is_judged_by_conservative_ones(self):
        assert limits_of({}) == CONSERVATIVE and not CONSERVATIVE.calibrated

    def test_its_own_limits_are_read_as_they_were_written(self):
        own = VerdictLimits((Limit("flow_mm", "above", 9.0, 12.0),), TestVerdict.SCORE, {"fitted": {"sound": 100}})
        assert limits_of({"verdict": own.as_dict()}) == own and own.calibrated

    @pytest.mark.parametrize(
        "entry",
        [
            {"figure": "beauty", "side": "above", "look": 1, "failed": 2},
            {"figure": "flow_mm", "side": "beside", "look": 1, "failed": 2},
            {"figure": "flow_mm", "side": "above", "look": 2, "failed": 1},
            {"figure": "flow_mm", "side": "below", "look": 2, "failed": 1},
            {"figure": "flow_mm", "side": "above", "look": math.inf, "failed": math.inf},
        ],
    )
    def test_limits_that_mean_nothing_are_refused(self, entry):
        with pytest.raises(ValueError, match="limit"):
            limits_of({"verdict": {"limits": [entry], "calibration": {}}})

    @pytest.mark.parametrize("change", [{"scale": 0.0}, {"weight": math.nan}, {"figure": "beauty"}])
    def test_terms_that_mean_nothing_are_refused(self, change):
        stated = TestVerdict.SCORE.as_dict()
        stated["terms"][0] |= change
        with pytest.raises(ValueError, match="term"):
            limits_of({"verdict": {"limits": [], "score": stated, "calibration": {}}})
