"""Training runs, tiny but real: the loss falls, a run continues exactly, and bad input ends before the first step."""

import csv
import os
import signal
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.geometry.errors import InputError
from train.checkpoint import load_checkpoint
from train.fit import LOG_COLUMNS, fit
from train.options import FitOptions
from train.sources import open_sources
from train.validation import mean_dice
from train.volumes import read_list

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _subject(number, size=16):
    """A bright ball with a dark core, elsewhere in each subject, and labels of the two."""
    rng = np.random.default_rng(number)
    centre = size / 2 + rng.uniform(-1.5, 1.5, 3)
    axes = np.meshgrid(*(np.arange(size) - c for c in centre), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes)) + 0.2 * rng.standard_normal((size,) * 3)
    labels = np.select([radius < 3, radius < 6], [2, 1]).astype(np.int16)
    return np.select([labels == 2, labels == 1], [300, 900], 0).astype(np.int16), labels


@pytest.fixture
def folder(tmp_path):
    """Six subjects, images in one folder, labels in another, and a CSV of both."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    lines = ["image,labels"]
    for number in range(6):
        image, label_map = _subject(number)
        nib.save(nib.Nifti1Image(image, AFFINE), images / f"s{number}.nii.gz")
        nib.save(nib.Nifti1Image(label_map, AFFINE), labels / f"s{number}.nii.gz")
        lines.append(f"images/s{number}.nii.gz,labels/s{number}.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def generated(tmp_path):
    return FitOptions(
        tmp_path / "run", shape=(16, 16, 16), steps=6, precision="fp32", device="cpu", threads=1, average=0.9,
        validate_every=2, validation_pairs=2, schedule="cosine", warmup=2, learning_rate=1e-3, clip=1.0, seed=5,
    )  # fmt: skip


@pytest.fixture
def listed(folder):
    return FitOptions(
        folder / "run", data=str(folder / "list.csv"), steps=4, precision="fp32", device="cpu", threads=1,
        validate_every=2, validation_volumes=2, validation_pairs=2, learning_rate=2e-3,
    )  # fmt: skip


def _refused(options, *words):
    steps = []
    with pytest.raises(InputError) as caught:
        fit(options, steps.append)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not steps


def _stop_after(step):
    def watch(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_loss_falls_and_best_is_the_largest_dice(listed):
    losses, scores = [], []
    options = replace(listed, steps=60, smooth=0.05, validate_every=10)
    result = fit(options, lambda p: (losses.append(p.losses.total), scores.append(p.score)))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1
    dices = [score.dice for score in scores[9:]]
    assert scores[0] is None and result.best == max(dices) == load_checkpoint(result.best_path).provenance["validation"]
    assert max(dices) > dices[0]


def test_stopped_and_resumed_equals_straight_through_bit_for_bit(generated, tmp_path):
    straight = fit(generated)
    halves = replace(generated, output=tmp_path / "halves")
    first = fit(halves, _stop_after(3))
    assert first.interrupted and first.steps == 3 and not straight.interrupted
    second = fit(replace(halves, resume=True))
    assert second.steps == straight.steps == 6 and second.best == straight.best
    expected, got = load_checkpoint(straight.last_path), load_checkpoint(second.last_path)
    assert all(torch.equal(got.state[name], tensor) for name, tensor in expected.state.items())
    assert all(torch.equal(got.training["weights"][n], t) for n, t in expected.training["weights"].items())
    assert all(torch.equal(load_checkpoint(second.best_path).state[n], t) for n, t in
               load_checkpoint(straight.best_path).state.items())  # fmt: skip
    columns = [[(row["step"], row["loss"], row["ncc"]) for row in _log(r)] for r in (straight, second)]
    assert columns[0] == columns[1]


def _log(result):
    with result.log_path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pairs_prepared_beside_training_change_nothing(generated, tmp_path):
    alone, beside = fit(generated), fit(replace(generated, output=tmp_path / "beside", workers=1))
    expected, got = load_checkpoint(alone.last_path).state, load_checkpoint(beside.last_path).state
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_best_is_a_network_with_its_provenance_and_the_log_has_every_step(generated):
    result = fit(replace(generated, licence="CC0-1.0"))
    best = load_checkpoint(result.best_path)
    assert best.training is None and best.network()(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8)).shape[1] == 3
    provenance = best.provenance
    assert provenance["licence"] == "CC0-1.0" and provenance["seed"] == 5 and provenance["seconds"] > 0
    assert "generated" in provenance["data"] and provenance["recipe"]["loss"] == "plain"
    assert provenance["recipe"]["shape"] == [16, 16, 16] and provenance["validation"] == result.best
    rows = _log(result)
    assert tuple(rows[0]) == LOG_COLUMNS and [int(row["step"]) for row in rows] == list(range(1, 7))
    scores = [float(row["ncc"]) for row in rows if row["ncc"]]
    assert len(scores) == 3 and max(scores) == pytest.approx(result.best, abs=1e-5)


def test_provenance_says_nothing_about_the_machines_folders(listed):
    result = fit(listed)
    assert str(listed.output.parent) not in repr(dict(load_checkpoint(result.best_path).provenance))


def test_learning_rate_rises_then_follows_the_cosine_down(generated):
    rates = [float(row["learning_rate"]) for row in _log(fit(replace(generated, warmup=1)))]
    steps = np.arange(6)
    cosine = 1e-3 * (0.03 + 0.97 * (1 + np.cos(np.pi * steps / 6)) / 2)
    np.testing.assert_allclose(rates, cosine * np.minimum(1, (steps + 1) / 2), rtol=1e-2)


def test_minutes_end_a_run(generated):
    result = fit(replace(generated, steps=10**6, minutes=1e-6))
    assert result.steps == 1 and not result.interrupted and result.best_path.exists()


def test_start_takes_the_weights_and_remembers_where_from(generated, tmp_path):
    first = fit(generated)
    again = fit(replace(generated, output=tmp_path / "again", start=first.best_path, steps=1, learning_rate=1e-9))
    before, after = load_checkpoint(first.best_path), load_checkpoint(again.last_path)
    assert all(torch.allclose(after.state[name], tensor, atol=1e-6) for name, tensor in before.state.items())
    assert after.provenance["started_from"] == before.provenance


def test_bf16_trains_the_same_way(generated):
    losses = {}
    for precision in ("fp32", "bf16"):
        losses[precision] = []
        options = replace(generated, output=generated.output / precision, precision=precision, shape=(24, 24, 24))
        fit(options, lambda p, log=losses[precision]: log.append(p.losses.total))
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], atol=0.02)


def test_bf16_is_for_maps_that_the_library_computes_right(generated):
    _refused(replace(generated, precision="bf16"), "precision: bf16 needs sizes >= 24", "(16, 16, 16)")
    assert fit(replace(generated, precision="auto", steps=1)).precision == "fp32"


def test_coarse_levels_count_at_first_and_no_more_at_the_end(generated, tmp_path):
    shares = []
    for coarse in (0.0, 0.5):
        options = replace(generated, output=tmp_path / str(coarse), coarse=coarse, learning_rate=1e-12, steps=4)
        totals = []
        fit(options, lambda p, totals=totals: totals.append((p.losses.total, p.losses.local_ncc)))
        shares.append(totals)
    extra = [with_coarse[0] - alone[0] for alone, with_coarse in zip(*shares, strict=True)]
    assert [row[1] for row in shares[0]] == pytest.approx([row[1] for row in shares[1]], abs=1e-4)
    assert extra[0] < -0.1 and abs(extra[3]) < abs(extra[0]) / 2


def test_validation_pairs_are_not_training_pairs(listed, generated):
    sources = open_sources(listed)
    seen = [image for step in range(30) for image in sources.pair(step)]
    held = [image for pair in sources.validation for image in (pair.moving, pair.fixed)]
    assert not any(torch.equal(a, b) for a in seen for b in held)
    assert all(pair.fixed_labels.shape == (16, 16, 16) for pair in sources.validation)
    made = open_sources(generated)
    assert not any(torch.equal(made.pair(step)[0], made.validation[0].moving) for step in range(6))


def test_listed_pairs_are_two_different_normalised_volumes_and_repeat(listed):
    sources, again = open_sources(listed), open_sources(listed)
    order = [sources.pair(step) for step in range(12)]
    assert all(not torch.equal(moving, fixed) for moving, fixed in order)
    assert all(torch.equal(order[step][0], again.pair(step)[0]) for step in (11, 3))
    assert {image.max().item() for pair in order for image in pair} == {1.0}


def test_lists_are_folders_globs_and_csvs(folder):
    from_folder = read_list("data", str(folder / "images"))
    from_glob = read_list("data", str(folder / "images" / "*.nii.gz"))
    from_csv = read_list("data", str(folder / "list.csv"))
    assert from_folder == from_glob and len(from_csv) == 6
    assert [v.image for v in from_csv] == [v.image for v in from_folder]
    assert from_folder[0].labels is None and from_csv[0].labels == folder / "labels" / "s0.nii.gz"


def test_orientation_of_the_files_does_not_matter(listed, folder):
    before = open_sources(listed).pair(0)
    for file in (folder / "images").iterdir():
        image = nib.load(file)
        flip = nib.orientations.axcodes2ornt("LIA")
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), flip))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), file.with_name(f"lia_{file.name}"))
    after = open_sources(replace(listed, data=str(folder / "images" / "lia_*"))).pair(0)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("shape", [(8, 24, 16), (32, 8, 16)])
def test_volumes_are_cropped_and_padded_about_their_centre(listed, shape):
    whole = open_sources(listed).pair(0)[0]
    fitted = open_sources(replace(listed, shape=shape)).pair(0)[0]
    assert fitted.shape == shape
    here, there = ([slice((n - min(n, m)) // 2, (n + min(n, m)) // 2) for n, m in zip(a, b, strict=True)]
                   for a, b in ((shape, whole.shape), (whole.shape, shape)))  # fmt: skip
    assert torch.equal(fitted[tuple(here)], whole[tuple(there)])
    assert fitted.sum().item() == pytest.approx(whole[tuple(there)].sum().item())


def test_options_check_themselves(tmp_path):
    for change in (
        {"loss": "mse"}, {"steps": 0}, {"learning_rate": 0.0}, {"shape": (16, 17, 16)}, {"precision": "fp16"},
        {"res_blocks": 7}, {"average": 1.0}, {"minutes": 0.0}, {"threads": 0}, {"device": "tpu"}, {"smooth": -1.0},
        {"schedule": "steps"}, {"validation_pairs": 0}, {"data": "x", "template": "mni152"}, {"validation": "x"},
        {"resume": True, "start": tmp_path},
    ):  # fmt: skip
        with pytest.raises(InputError, match="^" + next(reversed(change)).replace("resume", "start")):
            FitOptions(tmp_path, **change)


def test_a_folder_with_a_run_is_not_overwritten_and_resume_needs_one(generated):
    _refused(replace(generated, resume=True), "resume:", "does not exist")
    fit(replace(generated, steps=1))
    _refused(generated, "output:", "exists", "resume")


def test_resume_with_other_options_is_refused_by_name(generated):
    fit(replace(generated, steps=1))
    _refused(replace(generated, resume=True, smooth=2.0, seed=6), "smooth", "seed")


def test_start_from_another_kind_of_network_is_refused(generated, tmp_path):
    first = fit(replace(generated, steps=1))
    _refused(replace(generated, output=tmp_path / "b", start=first.last_path, res_blocks=1), "start:", "res_blocks=1")


def _one_voxel_short(folder):
    image, _ = _subject(9, size=15)
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "images" / "s3.nii.gz")


def _moved(folder):
    shifted = AFFINE.copy()
    shifted[0, 3] = 5
    nib.save(nib.Nifti1Image(_subject(3)[0], shifted), folder / "images" / "s3.nii.gz")


def _not_finite(folder):
    image = _subject(5)[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "images" / "s5.nii.gz")


def _four_axes(folder):
    nib.save(nib.Nifti1Image(np.ones((16, 16, 16, 2), np.int16), AFFINE), folder / "images" / "s3.nii.gz")


def _half_labels(folder):
    nib.save(nib.Nifti1Image(_subject(4)[1] / 2, AFFINE), folder / "labels" / "s4.nii.gz")


DAMAGES = [
    (_one_voxel_short, ["s3.nii.gz", "not on the grid", "resample"]),
    (_moved, ["s3.nii.gz", "not on the grid"]),
    (_not_finite, ["s5.nii.gz", "NaN"]),
    (_four_axes, ["s3.nii.gz", "2 volumes"]),
    (_half_labels, ["labels/s4.nii.gz", "whole number"]),
    (lambda folder: (folder / "images" / "s0.nii.gz").write_bytes(b"no volume"), ["s0.nii.gz", "cannot be read"]),
    (lambda folder: (folder / "images" / "s1.nii.gz").unlink(), ["s1.nii.gz", "does not exist"]),
    (lambda folder: (folder / "list.csv").write_text("scan\nimages/s0.nii.gz\n"), ["columns scan", "image"]),
    (lambda folder: (folder / "list.csv").write_text("image\n"), ["list.csv"]),
    (lambda folder: (folder / "list.csv").write_text("image,labels\n,x\n"), ["line 2", "no image"]),
    (lambda folder: (folder / "list.csv").unlink(), ["cannot read", "list.csv"]),
    (lambda folder: (folder / "list.csv").write_text("image\nimages/s0.nii.gz\n" * 1), ["got 1 volumes", "expected 4"]),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_bad_list_ends_before_the_first_step(listed, folder, damage, words):
    damage(folder)
    _refused(listed, *words)
    assert not listed.output.exists()


def test_sizes_that_are_no_multiple_of_eight_say_what_to_give(listed, folder):
    for number in range(6):
        for kind, array in zip(("images", "labels"), _subject(number, size=13), strict=True):
            nib.save(nib.Nifti1Image(array, AFFINE), folder / kind / f"s{number}.nii.gz")
    _refused(listed, "(13, 13, 13)", "give shape 16,16,16")
    assert fit(replace(listed, shape=(16, 16, 16), steps=1)).steps == 1


def test_an_empty_folder_is_refused(generated, tmp_path):
    (tmp_path / "empty").mkdir()
    _refused(replace(generated, data=str(tmp_path / "empty")), "data:", "folder, glob or CSV")


def test_mean_dice_is_over_shared_labels():
    fixed, warped = np.array([1, 1, 2, 2, 0, 3]), np.array([1, 0, 2, 2, 2, 0])
    assert mean_dice(fixed, warped) == pytest.approx((2 * 1 / 3 + 2 * 2 / 5) / 2)
    assert np.isnan(mean_dice(np.zeros(3, int), np.ones(3, int)))


def test_a_checkpoint_to_start_from_is_looked_for_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"start: .*absent\.pt does not exist"):
        FitOptions(output=tmp_path, start=tmp_path / "absent.pt")
