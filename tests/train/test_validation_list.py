"""Lists of single validation pairs: a grid for each pair, groups, and errors in a list."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import InputError
from tests.train.training import generated_run, listed_run, refused, rows, write_subjects
from train.data.sources import open_sources
from train.data.validation_list import lists_pairs, read_pair_list
from train.fit import fit
from train.model.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture
def pairs(tmp_path):
    """Four pairs: two of 16 voxels, one of 13, one of 16 without labels or a group."""
    for name, size in (("small", 13), ("usual", 16)):
        (tmp_path / name).mkdir()
        write_subjects(tmp_path / name, count=3, size=size)
    lines = ["fixed,moving,fixed_labels,moving_labels,group"]
    for folder, fixed, moving, group in (("usual", 0, 1, "brains"), ("usual", 1, 2, "brains"), ("small", 0, 2, "far")):
        files = [f"{folder}/{kind}/s{number}.nii.gz" for kind in ("images", "labels") for number in (fixed, moving)]
        lines.append(",".join((*files, group)))
    lines.append("usual/images/s0.nii.gz,usual/images/s2.nii.gz")
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_list_of_pairs_is_told_by_its_columns(pairs, tmp_path):
    assert lists_pairs(str(pairs))
    assert not any(map(lists_pairs, (str(tmp_path / "usual" / "list.csv"), str(tmp_path / "usual" / "images"))))


def test_every_pair_has_its_grid_its_group_and_its_way_round(pairs, tmp_path):
    sources = open_sources(generated_run(tmp_path / "run", validation=str(pairs), validation_pairs=8))
    assert sources.groups == ("brains", "brains", "far", "") and len(sources.validation) == 4
    assert [pair.labelled for pair in sources.validation] == [True, True, True, False]
    assert all(pair.fixed.shape == (16, 16, 16) for pair in sources.validation), "13 voxels are padded"
    scans = open_sources(generated_run(tmp_path / "run", validation=str(tmp_path / "usual" / "list.csv")))
    # Of a list of volumes each is moved onto the next; here the first line's fixed scan is the first volume.
    assert np.array_equal(sources.validation[0].fixed, scans.validation[0].moving)
    assert np.array_equal(sources.validation[0].moving, scans.validation[0].fixed)


def test_the_log_has_the_dice_of_every_group(pairs, tmp_path):
    options = generated_run(tmp_path / "run", validation=str(pairs), validation_pairs=3, steps=2)
    result = fit(options)
    groups = result.score.groups
    assert (2 * groups["brains"] + groups["far"]) / 3 == pytest.approx(result.score.iterstop.dice)
    assert rows(result)[-1]["groups"] == f"brains {groups['brains']:.5f}; far {groups['far']:.5f}"
    assert rows(result)[0]["groups"] == ""
    assert "validated on 3 pairs of pairs.csv" in load_checkpoint(result.best_path).provenance["data"]


def test_listed_volumes_may_be_validated_on_pairs_too(pairs, tmp_path):
    listed = listed_run(tmp_path / "run", tmp_path / "usual" / "list.csv", validation_volumes=None)
    sources = open_sources(replace(listed, validation=str(pairs)))
    assert len(sources.validation) == 2
    assert sources.description == "3 volumes of list.csv, validated on 2 pairs of pairs.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fixed,moving,grp\na,b,c\n", "has the column grp, expected fixed, moving"),
        ("fixed,moving\n", "lists no pair"),
        ("fixed,moving\nusual/images/s0.nii.gz,\n", "line 2 names no moving scan"),
        ("fixed,moving\nusual/images/s0.nii.gz,absent.nii.gz\n", "moving listed in .*: .*absent.nii.gz does not exist"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(pairs, text, words):
    pairs.write_text(text)
    with pytest.raises(InputError, match=f"^validation: .*{words}"):
        read_pair_list(pairs)


def test_two_scans_on_two_grids_are_refused(pairs, tmp_path):
    pairs.write_text("fixed,moving\nusual/images/s0.nii.gz,small/images/s1.nii.gz\n")
    refused(generated_run(tmp_path / "run", validation=str(pairs)), "is not on the grid of", "resample")
