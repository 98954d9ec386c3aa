"""Output of a registration: both directions, every requested convention, and correct content."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import runtime
from runtime.errors import InputError
from runtime.geometry.jacobian import folded_share
from runtime.registration.options import Options
from runtime.registration.output.folder import KINDS, Outputs, check_output
from runtime.transforms import CONVENTIONS, read_transform
from tests import scans

QUICK = Options(affine="none", schedule="1,2,1,1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Fixed: oblique, 1.2 x 1 x 1.5 mm. Moving: LPS order, another grid, bent."""
    folder = tmp_path_factory.mktemp("pair")
    fixed = scans.write_scan(folder / "f.nii.gz", scans.grid((30, 44, 26), (1.2, 1, 1.5), scans.OBLIQUE))
    moving = scans.write_scan(folder / "m.nii.gz", scans.grid((48, 56, 46), axes="LPS"), scans.bend)
    return fixed, moving


@pytest.fixture(scope="module")
def result(pair, engines):
    return runtime.register(*pair, engines, QUICK)


@pytest.fixture
def fresh(pair, engines):
    """A result of which nothing was computed on demand yet."""
    return runtime.register(*pair, engines, QUICK)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    """Everything, in every convention."""
    folder = tmp_path_factory.mktemp("out") / "all"
    result.save(folder, outputs=Outputs(CONVENTIONS))
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_simpleitk_repeats_the_fixed_scan_on_the_moving_grid(pair, written):
    """`inverse_warp.nii.gz` alone, applied by ITK to the untouched fixed scan, gives `warped_fixed.nii.gz`."""
    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in pair)
    field = sitk.ReadImage(str(written / "inverse_warp.nii.gz"), sitk.sitkVectorFloat64)
    again = sitk.Resample(fixed, moving, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(written / "warped_fixed.nii.gz")))
    assert ours.max() > 100
    assert np.abs(sitk.GetArrayFromImage(again) - ours).max() < 1e-3 * 900


def test_there_and_back_is_where_one_started(result, written):
    """Through both files, read with this project's reader: as accurate as the voxels of the second one allow."""
    there, back = (read_transform(written / name).transform for name in ("warp.nii.gz", "inverse_warp.nii.gz"))
    grid = result.transform.grid
    points = grid.to_physical(np.random.default_rng(3).uniform(8, np.array(grid.shape) - 9, (500, 3)))
    assert np.linalg.norm(there.points(points) - points, axis=1).max() > 0.05
    np.testing.assert_allclose(back.points(there.points(points)), points, atol=0.02)


def test_the_report_says_how_exact_the_inverse_is(result, written):
    inverse = report(written)["inverse"]
    assert 0 <= inverse["unresolved_share"] < 1e-3 and inverse["residual_mm"]["mean"] < inverse["tolerance"]
    solved, sampled = inverse["consistency_mm"]["solved"], inverse["consistency_mm"]["sampled"]
    assert solved["percentile_95"] < 0.002 and solved["percentile_95"] <= sampled["percentile_95"] < 0.1
    assert "inverse(forward(x)) within" in result.summary(inverse=True)


def test_every_transform_is_read_back(written):
    transforms = report(written)["transforms"]
    assert transforms["affine.txt"]["convention"] == "ras"
    assert {entry["convention"] for entry in transforms.values()} == {*CONVENTIONS, "ras"}
    assert len(transforms) == 2 * len(CONVENTIONS) + 1
    assert all(entry["error_mm"] < 1e-3 for entry in transforms.values())
    assert (transforms["warp.nii.gz"]["start"], transforms["warp.nii.gz"]["end"]) == ("f.nii.gz", "m.nii.gz")
    assert transforms["inverse_warp.nii.gz"]["start"] == "m.nii.gz"
    assert {"disp_f_m.nii.gz", "disp_m_f.nii.gz"} <= set(transforms)


def test_all_conventions_mean_the_same(result, written):
    points = result.fixed.grid.to_physical(np.random.default_rng(1).uniform(1, (28, 42, 24), (200, 3)))
    for name, entry in report(written)["transforms"].items():
        if entry["start"] == "f.nii.gz" and name != "affine.txt":
            found = read_transform(written / name).transform.points(points)
            sampled = read_transform(written / "warp.nii.gz").transform.points(points)
            np.testing.assert_allclose(found, sampled, atol=1e-3, err_msg=name)


def test_a_transform_that_is_not_read_back_as_written_stops_the_report(result, tmp_path, monkeypatch):
    from runtime.transforms.conventions import nifti_field

    def spoilt(path, displacement, *others):
        write(path, displacement + np.float32(0.1), *others)

    write = nifti_field.write_field
    monkeypatch.setattr(nifti_field, "write_field", spoilt)
    line = r"/out/warp.nii.gz: read back, it differs by 0.17\d mm .*; nothing was written$"
    with pytest.raises(InputError, match=line):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists(), "made for nothing"


def test_the_jacobian_is_the_written_fields(result, written):
    """At a voxel: the volume spanned by its six neighbours after mapping by ITK, relative to that before."""
    field = sitk.ReadImage(str(written / "warp.nii.gz"), sitk.sitkVectorFloat64)
    itk, grid = sitk.DisplacementFieldTransform(field), result.fixed.grid
    lps = np.array([-1.0, -1.0, 1.0])
    ours = nib.load(written / "jacobian.nii.gz").get_fdata()
    for voxel in np.random.default_rng(5).integers(1, np.array(grid.shape) - 1, (50, 3)):
        sides = [(grid.to_physical(voxel + step), grid.to_physical(voxel - step)) for step in np.eye(3)]
        before = np.stack([one - other for one, other in sides])
        after = np.stack([lps * np.subtract(*(itk.TransformPoint(lps * end) for end in ends)) for ends in sides])
        assert ours[tuple(voxel)] == pytest.approx(np.linalg.det(after) / np.linalg.det(before), abs=1e-4)
    assert report(written)["jacobian"]["folded_share"] == pytest.approx(folded_share(result.jacobian))


def test_forward_only_leaves_the_way_back_out(fresh, tmp_path):
    fresh.save(tmp_path / "out", outputs=Outputs(("fsl",), both=False))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    fields, shown = {"warp_fsl.nii.gz", "affine.txt", "jacobian.nii.gz"}, {"preview.png", "report.html", "report.json"}
    assert names == {"warped.nii.gz", *fields, *shown}
    assert "inversion" not in vars(fresh) and report(tmp_path / "out")["inverse"] is None
    assert "inverse" not in fresh.summary()


class TestSelectedOutputs:
    """`kinds`: what is not asked for is neither written nor computed."""

    def save(self, result, folder, **how):
        result.save(folder, outputs=Outputs(**how))
        assert report(folder)["outputs"] == list(Outputs(**how).names("f", "m", labels=False))
        return {path.name for path in folder.iterdir()}

    def test_the_warped_image_alone(self, fresh, result, tmp_path):
        assert self.save(fresh, tmp_path / "out", kinds=("warped",)) == {"warped.nii.gz", "report.json"}
        assert "inversion" not in vars(fresh) and "warped_fixed" not in vars(fresh)
        found = report(tmp_path / "out")
        assert found["inverse"] is None and found["transforms"] == {}
        assert found["jacobian"] == pytest.approx(result.volume_change), "figures without the file"
        assert found["verdict"]["verdict"] == result.verdict.verdict and found["displacement_mm_affine_included"]

    @pytest.mark.parametrize(
        ("kind", "files"),
        [
            ("warped_fixed", {"warped_fixed.nii.gz"}),
            ("inverse", {"inverse_warp.nii.gz", "inverse_warp_fsl.nii.gz"}),
            ("warp", {"warp.nii.gz", "warp_fsl.nii.gz"}),
            ("affine", {"affine.txt"}),
            ("jacobian", {"jacobian.nii.gz"}),
            ("preview", {"preview.png"}),
            ("report", {"report.html"}),
            ("labels", set()),  # there are none
        ],
    )
    def test_each_alone_in_two_conventions(self, fresh, tmp_path, kind, files):
        found = self.save(fresh, tmp_path / "out", conventions=("itk", "fsl"), kinds=(kind,))
        assert found == {*files, "report.json"}
        needed = kind in ("warped_fixed", "inverse")
        assert ("inversion" in vars(fresh)) == needed == (report(tmp_path / "out")["inverse"] is not None)

    def test_files_are_those_of_a_whole_result(self, result, written, tmp_path):
        self.save(result, tmp_path / "out", kinds=("warp", "warped_fixed"))
        for name in ("warp.nii.gz", "warped_fixed.nii.gz"):
            assert (tmp_path / "out" / name).read_bytes() == (written / name).read_bytes()

    def test_all_kinds_are_the_default(self):
        assert Outputs(kinds=KINDS).names("f", "m", True) == Outputs().names("f", "m", True)
        assert len(Outputs().names("f", "m", True)) == len(KINDS) + 1

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            (
                {"kinds": ("warped", "flow")},
                "--outputs: got 'flow', expected one or several of warped, labels, warped_f",
            ),
            ({"kinds": ()}, "--outputs: got nothing, expected one or several of warped"),
            ({"kinds": ("warp", "inverse"), "both": False}, "--outputs: got inverse, which --forward-only leaves out"),
            ({"kinds": ("warped_fixed",), "both": False}, "--outputs: got warped_fixed, which --forward-only leaves o"),
            ({"kinds": ("report",), "page": False}, "--outputs: got report, which --no-report leaves out"),
            ({"kinds": ("warp",), "full_page": True}, "--report-full: .* --outputs that lack report; add report"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, how, message):
        with pytest.raises(InputError, match=message):
            Outputs(**how)


def test_a_compact_result_is_close_and_says_so(result, written, tmp_path):
    """Both directions and the Jacobian, against the exact files, at every voxel."""
    result.save(tmp_path / "out", outputs=Outputs(CONVENTIONS, compact=True))
    exact, found = report(written), report(tmp_path / "out")
    assert found["compact"] is True and exact["compact"] is False
    for name, entry in found["transforms"].items():
        assert entry["tolerance_mm"] == (0.01 if name == "affine.txt" else 0.03)
        assert 0 <= entry["error_mm"] < 0.0272 and exact["transforms"][name]["tolerance_mm"] == 0.01
    for name in ("warp.nii.gz", "inverse_warp.nii.gz"):
        fields = [sitk.GetArrayFromImage(sitk.ReadImage(str(where / name))) for where in (tmp_path / "out", written)]
        assert 0.01 < np.linalg.norm(np.subtract(*fields), axis=-1).max() < 0.0272
    compact, plain = (nib.load(where / "jacobian.nii.gz").get_fdata() for where in (tmp_path / "out", written))
    assert 0 < np.abs(compact / plain - 1).max() <= 2**-9
    assert found["jacobian"] == exact["jacobian"], "of the exact transform"
    for name in ("warped.nii.gz", "warped_fixed.nii.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (written / name).read_bytes()


def test_overwriting_removes_what_the_new_result_has_not(result, tmp_path):
    result.save(tmp_path / "out", outputs=Outputs(("itk", "h5")))
    result.save(tmp_path / "out", overwrite=True, outputs=Outputs(("itk",), both=False))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == set(Outputs(both=False).names("f", "m", labels=False))


def test_another_pair_in_the_same_folder_leaves_nothing_of_the_first(result, tmp_path):
    """Learn2Reg's files are named after the scans; those of the previous pair are found through its report."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "disp_a_b.nii.gz").write_text("earlier")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    listed = ["disp_a_b.nii.gz", "../x", "report.json"]
    (tmp_path / "out" / "report.json").write_text(json.dumps({"format": "rpnet-registration", "outputs": listed}))
    result.save(tmp_path / "out", overwrite=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*Outputs().names("f", "m", labels=False), "notes.txt"}


@pytest.mark.parametrize(
    "content", [{"outputs": ["notes.txt"]}, {"format": "rpnet-registration", "outputs": "notes.txt"}, ["notes.txt"]]
)
def test_a_report_that_is_not_ours_says_nothing_of_what_may_go(result, tmp_path, content):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.json").write_text(json.dumps(content))
    result.save(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_input_that_an_earlier_report_lists_is_not_removed(tmp_path):
    name = "disp_a_b.nii.gz"
    (tmp_path / name).write_text("a start of the affine")
    (tmp_path / "report.json").write_text(json.dumps({"format": "rpnet-registration", "outputs": [name]}))
    with pytest.raises(InputError, match=f"--output: would replace the input {tmp_path / name}"):
        check_output(tmp_path, True, "f.nii.gz", "m.nii.gz", [tmp_path / name])


def test_scans_of_one_name_get_two_fields():
    """sub-01/t1.nii.gz and sub-02/T1.nii.gz: the two directions are different files."""
    files = Outputs(("learn2reg",)).transforms("t1", "T1")
    assert files == {"disp_fixed_moving.nii.gz": ("learn2reg", False), "disp_moving_fixed.nii.gz": ("learn2reg", True)}


@pytest.mark.parametrize("conventions, got", [(("itk", "slicer"), "'slicer'"), ((), "nothing"), (("",), "''")])
def test_unknown_conventions_are_refused(conventions, got):
    with pytest.raises(InputError, match=f"--write: got {got}, expected one or several of itk, freesurfer, fsl"):
        Outputs(conventions)


class TestReadyPair:
    """Aligned and encoded once, registered by any schedule: each result is what it would be alone, bit for bit."""

    CHOICES = (
        Options(affine="none", schedule="1,1,1,1"),
        Options(affine="none", schedule="cascade:2"),
        Options(affine="none", similarity="lncc", max_iterations=2),
        Options(affine="none", schedule="1,1,1,1"),
    )

    def test_schedules_and_similarities_in_turn(self, pair, engines):
        ready = runtime.FixedScan(pair[0], engines, self.CHOICES[0]).align(pair[1])
        for options in self.CHOICES:
            together, alone = ready.register(options), runtime.register(*pair, engines, options)
            np.testing.assert_array_equal(together.displacement, alone.displacement)
            assert together.iterations.passes == alone.iterations.passes
            assert together.options == alone.options

    def test_affine_and_window_are_the_pairs(self, pair, engines):
        ready = runtime.FixedScan(pair[0], engines, Options(affine="none", window=(0.0, 500.0))).align(pair[1])
        options = ready.register(Options(affine="auto", schedule="0,0,0,0")).options
        assert (options.affine, options.window) == ("none", (0.0, 500.0))


def test_voxel_sizes_that_fsl_would_not_see_are_refused_before_any_work(pair, engine_dir, tmp_path):
    """A scale baked into the sform: FSL measures by pixdim."""
    from runtime.registration.batch.files import EngineChoice, plan_tasks, register_files

    image = nib.load(pair[1])
    image.set_sform(image.affine @ np.diag([1.2, 1.2, 1.2, 1]), 1, update_affine=True)
    image.header["pixdim"][1:4] = 1
    image.to_filename(tmp_path / "odd.nii.gz")
    tasks = plan_tasks(tmp_path / "out", (tmp_path / "odd.nii.gz",))
    with pytest.raises(InputError, match=r"odd.nii.gz: has voxels of .* in its header \(pixdim\)"):
        list(register_files(pair[0], tasks, EngineChoice(engine_dir), QUICK, outputs=Outputs(("fsl",))))
    assert not (tmp_path / "out").exists()
