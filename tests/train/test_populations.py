"""Varied pairs: the effect on a generated pair of every difference between two scans."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from runtime.geometry.flow import folded_share
from runtime.images.overlap import mean_dice
from train.data.image_pair import is_deep
from train.data.randomness import Randomness, identity
from train.data.synthetic import ALIKE, VARIED, Population, load_template
from train.data.synthetic.deep_structures import DEEP_STRUCTURES
from train.data.synthetic.defects import with_lesions, with_residue
from train.data.synthetic.deformation import own_motion
from train.data.synthetic.levels import distance, sample
from train.data.synthetic.population import Side
from train.data.synthetic.scanner import coarsen, contrast_curve
from train.data.synthetic.scenes import brain, shapes

GRID = (72, 80, 64)
DEEP = Population(structures=1.0)


def _random(seed=0):
    return Randomness(np.random.default_rng(seed), torch.device("cpu"))


@pytest.fixture(scope="module")
def template():
    return load_template("mni152")


@pytest.fixture
def scene(template):
    """A brain with deep structures whose T1 values are dark to bright."""
    return replace(brain(_random(2), GRID, template, DEEP), values=(0.1, 0.6, 0.9), stripped=False)


def _detail(image):
    """Return the share of an image's variance that is finer than three voxels, inside it."""
    rough = [image.diff(dim=axis).square().mean() for axis in range(3)]
    return float(sum(rough) / image.var())


class TestPopulation:
    def test_what_has_no_share_draws_no_number(self):
        used, fresh = _random(), _random()
        assert ALIKE.sides(used) == (Side(), Side())
        assert used.between(0, 1) == fresh.between(0, 1)

    @pytest.mark.parametrize("name", ["average", "residue", "lesions"])
    def test_defects_and_averages_are_on_one_side_and_on_either(self, name):
        drawn = [replace(ALIKE, **{name: 1.0}).sides(_random(seed)) for seed in range(20)]
        assert all(bool(getattr(one, name)) != bool(getattr(two, name)) for one, two in drawn)
        assert {bool(getattr(one, name)) for one, _ in drawn} == {True, False}

    def test_shares_are_kept(self):
        random = _random()
        drawn = [replace(VARIED, child=0.0).sides(random) for _ in range(2000)]
        for name in ("average", "apart", "ventricles", "atrophy", "residue", "lesions"):
            share = np.mean([any(getattr(side, name) for side in sides) for sides in drawn])
            assert share == pytest.approx(getattr(VARIED, name), abs=0.04), name

    def test_a_child_is_on_one_side_and_never_an_average(self):
        random = _random()
        drawn = [replace(VARIED, child=0.5).sides(random) for _ in range(2000)]
        young = [[side.pallor > 0 for side in sides] for sides in drawn]
        assert np.mean([any(pair) for pair in young]) == pytest.approx(0.5 * (1 - VARIED.average / 2), abs=0.04)
        assert not any(all(pair) for pair in young)
        assert not any(side.average for sides in drawn for side in sides if side.pallor)

    def test_every_share_is_used(self):
        assert all(getattr(VARIED, field.name) > 0 for field in fields(Population))

    def test_the_brain_beside_an_average_is_plain(self):
        for seed in range(5):
            one, two = replace(ALIKE, average=1.0).sides(_random(seed))
            assert one.plain == two.average and two.plain == one.average

    def test_a_share_above_one_is_refused(self):
        with pytest.raises(InputError, match=r"lesions: got 15, expected a share of pairs, 0 to 1"):
            Population(lesions=15)


class TestPlaces:
    def test_the_structures_of_mni152_have_about_their_sizes(self, template):
        """Both hemispheres in cubic centimetres, from anatomy textbooks, within a factor of 1.5."""
        expected = {"ventricle": 16, "thalamus": 15, "putamen": 10, "pallidum": 3.5, "caudate": 8, "hippocampus": 8,
                    "amygdala": 5}  # fmt: skip
        for place, level in zip(DEEP_STRUCTURES, template.levels[1:], strict=True):
            assert float((level > 0).sum()) / 1000 == pytest.approx(expected[place.name], rel=0.6), place.name

    def test_they_lie_in_both_halves_alike(self, template):
        half = template.shape[0] // 2
        for place, level in zip(DEEP_STRUCTURES, template.levels[1:], strict=True):
            left, right = (level[:half] > 0).sum(), (level[-half:] > 0).sum()
            assert left / right == pytest.approx(1, rel=0.3), place.name

    def test_their_tissue_is_what_they_are_made_of(self, template):
        _, grey, white, _ = template.maps
        inside = {place.name: level > 0.5 for place, level in zip(DEEP_STRUCTURES, template.levels[1:], strict=True)}
        assert (grey + white)[inside["ventricle"]].mean() < 0.3
        for name in ("caudate", "putamen", "hippocampus", "amygdala"):
            assert grey[inside[name]].mean() > 0.6, name
        assert 0.1 < grey[inside["pallidum"]].mean() < 0.5 < white[inside["pallidum"]].mean()


class TestStructures:
    def test_one_brain_beside_an_average_holds_nothing_else(self, scene):
        """It contains only fluid, grey and white matter; inclusions, which have labels of their own, are absent."""
        spotted = replace(scene, inclusions=((torch.ones(GRID), 0.5),))
        labels = {plain: spotted.paint(_random(), Side(plain=plain)).labels for plain in (False, True)}
        inclusion = 3 * scene.parcel_count + 1
        assert (labels[False] == inclusion).any() and not (labels[True] == inclusion).any()

    def test_a_border_in_the_image_is_where_the_label_ends(self, scene):
        """Inside a ventricle it is dark, outside bright, and half way between both it is where the label changes."""
        painting = scene.paint(_random(), Side())
        level = distance((painting.labels == 1000).float() - 0.5, 0.1)
        fluid, core = scene.structures.ventricle > 2, scene.white > 0.4
        inside, outside = (painting.image[mask].median() for mask in (fluid, core))
        border = (painting.labels == 1000) & (scene.structures.ventricle < 0.5)
        assert level.isfinite().all() and inside < 0.2 < 0.8 < outside
        assert float(painting.image[border].median()) < (inside + outside) / 2

    def test_two_sides_have_the_same_structures_with_borders_of_their_own(self, scene):
        random = _random()
        one, two = (scene.paint(random, Side()).labels for _ in range(2))
        deep = [torch.where(is_deep(labels), labels, 0).numpy() for labels in (one, two)]
        assert set(np.unique(deep[0])) == set(np.unique(deep[1])) and deep[0].max() >= 1000
        assert 0.6 < mean_dice(*deep) < 0.99

    def test_scenes_without_a_template_have_them_too(self):
        painting = shapes(_random(4), GRID, DEEP).paint(_random(), Side())
        assert is_deep(painting.labels).any()

    def test_no_label_is_deep_where_no_structures_are_asked_for(self, template):
        painting = brain(_random(2), GRID, template, ALIKE).paint(_random(), Side())
        assert not is_deep(painting.labels).any()


class TestMotion:
    def test_what_is_painted_moves_by_the_motion_and_labels_move_along(self, scene):
        """The deep labels of a moved side, brought back by the motion that is known, are those that did not move."""
        painting = scene.paint(_random(), Side(motion=2.0))
        places = identity(GRID)
        still = painting.labels[None].float()
        moved = sample(still, places - painting.motion, "nearest")
        back = sample(moved, places + painting.motion, "nearest")
        before, after = (mean_dice(_deep(still), _deep(labels)) for labels in (moved, back))
        assert after > 0.9 > before

    def test_nothing_moves_at_the_surface_and_deep_inside_all_of_it_does(self):
        depth = torch.arange(40.0)[:, None, None].expand(40, 40, 40)
        motion = own_motion(_random(), depth, None, Side(motion=2.0))
        assert not motion[:, :8].any() and motion[:, 20:].std() == pytest.approx(2, rel=0.4)

    def test_it_hardly_folds(self, scene):
        flows = [own_motion(_random(seed), scene.depth, None, Side(motion=VARIED.motion)) for seed in range(4)]
        assert np.mean([folded_share(flow.numpy()) for flow in flows]) < 0.01

    @pytest.mark.parametrize("grown", [3.0, -1.5])
    def test_ventricles_widen_by_the_voxels_that_are_asked_for(self, grown):
        """A ball of fluid of radius 9 gets a radius of 9 + grown."""
        places = identity((48, 48, 48)) - 23.5
        ball = 9 - places.square().sum(0).sqrt()
        motion = own_motion(_random(), ball + 20, ball, Side(ventricles=grown))
        moved = sample(ball[None], identity((48, 48, 48)) - motion)[0]
        radius = float(((moved > 0).sum() * 3 / 4 / np.pi) ** (1 / 3))
        assert radius == pytest.approx(9 + grown, abs=0.6)


def _deep(labels):
    return torch.where(is_deep(labels), labels, 0).int().numpy()


class TestAverage:
    @pytest.mark.parametrize("kind", ["template", "no template", "shapes"])
    def test_an_average_has_less_detail_than_a_brain(self, template, kind):
        if kind == "shapes":
            scene = shapes(_random(4), GRID, DEEP)
        else:
            scene = brain(_random(5), GRID, template, DEEP)
            scene = replace(scene, template=scene.template if kind == "template" else None)
        brains, averages = (
            [_detail(scene.paint(_random(seed), Side(average=average)).image) for seed in range(3)]
            for average in (False, True)
        )
        assert max(averages) < 0.8 * min(brains)

    def test_the_average_of_a_template_is_its_own_image(self, scene):
        images = [scene.paint(_random(seed), Side(average=True)).image for seed in range(8)]
        assert any(torch.equal(image, scene.template[0]) for image in images)
        assert not all(torch.equal(image, scene.template[0]) for image in images)

    def test_values_of_another_order_are_not_those_of_the_template(self, scene):
        other = replace(scene, values=(0.9, 0.6, 0.2))
        images = [other.paint(_random(seed), Side(average=True)).image for seed in range(8)]
        assert not any(torch.equal(image, scene.template[0]) for image in images)


class TestDefects:
    def test_residue_lies_outside_the_brain_and_has_no_label(self, scene):
        painting = scene.paint(_random(), Side())
        spoilt = with_residue(_random(1), painting, scene.depth)
        added = (spoilt.shown > 0) & (painting.shown <= 0)
        assert added.any() and not spoilt.labels[added].any() and (spoilt.image[added] > 0).all()
        assert (scene.depth[added] < 0).all() and (scene.depth[added] > -5.5).all()
        assert torch.equal(spoilt.image[~added], painting.image[~added])

    def test_lesions_change_values_and_no_labels(self, scene):
        painting = scene.paint(_random(), Side())
        spoilt = with_lesions(_random(1), painting, scene.depth, 5)
        changed = spoilt.image != painting.image
        assert 0.0005 < changed.float().mean() < 0.2 and (scene.depth[changed] > 0).all()
        assert torch.equal(spoilt.labels, painting.labels)

    def test_atrophy_leaves_more_fluid(self, scene):
        fluid = [
            float((scene.paint(_random(), Side(atrophy=atrophy)).labels <= scene.parcel_count)[scene.depth > 0].sum())
            for atrophy in (0.0, 1.0)
        ]
        assert fluid[1] > 1.1 * fluid[0]


class TestChild:
    def test_the_sheet_is_thicker_the_furrows_narrower_and_white_matter_paler(self, scene):
        adult, child = (scene.paint(_random(), side) for side in (Side(), Side().young(_random(3))))
        inside, parcels = scene.depth > 0, scene.parcel_count
        fluid, grey = (
            [float((((one.labels - 1) // parcels == tissue) & inside).sum()) for one in (adult, child)]
            for tissue in (0, 1)
        )
        core = scene.white > 0.4
        assert fluid[1] < 0.95 * fluid[0] and grey[1] > 1.02 * grey[0]
        assert scene.values[1] < child.image[core].median() < adult.image[core].median() - 0.02


class TestScanner:
    def test_thick_slices_are_means_along_their_axis_alone(self):
        image = torch.rand(16, 12, 8, generator=torch.Generator().manual_seed(0))
        thick = coarsen(image, 4, (0,))
        assert thick.shape == image.shape
        assert torch.allclose(thick.mean(dim=0), image.mean(dim=0), atol=0.08)
        assert thick.diff(dim=0).abs().mean() < 0.3 * image.diff(dim=0).abs().mean()
        columns = torch.rand(1, 12, 8, generator=torch.Generator().manual_seed(1)).expand(16, 12, 8)
        assert torch.allclose(coarsen(columns, 4, (0,)), columns, atol=1e-6)

    def test_a_contrast_curve_rises_from_0_through_1_at_1(self):
        values = torch.linspace(0, 1.4, 50)
        curve = contrast_curve(values, np.random.default_rng(0).normal(0, 0.7, 6))
        assert curve[0] == 0 and (curve.diff() > 0).all()
        assert contrast_curve(torch.ones(1), [0.3, -1, 0.5, 0, 2, 1]).item() == pytest.approx(1)
        assert torch.allclose(contrast_curve(values, np.zeros(6)), values, atol=1e-6)
