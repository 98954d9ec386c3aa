"""Registration of two scans: output files are checked with other tools, not with this project's code."""

import dataclasses
import gc
import hashlib
import json
import weakref

import numpy as np
import pytest
import SimpleITK as sitk

import runtime
from runtime.backends.parity import example_pair
from runtime.backends.registry import BACKENDS, PRECISIONS
from runtime.errors import InputError
from runtime.host import machine
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.volume import read_volume
from runtime.loop import iterstop
from runtime.loop.stop_rules import DEFAULT_DELTA, parse_schedule
from runtime.registration import reading
from runtime.registration import scans as scans_module
from runtime.registration.arrays import register_arrays
from runtime.registration.options import Options
from runtime.registration.output.folder import Outputs
from runtime.registration.preprocessing import normalised
from tests import scans

QUICK = Options(affine="none", schedule="1,1,1,1")


@pytest.fixture
def pair(tmp_path):
    """Fixed: oblique, 1.2 x 1 x 1.5 mm. Moving: LPS order, another grid, bent."""
    fixed = scans.write_scan(tmp_path / "f.nii.gz", scans.grid((30, 44, 26), (1.2, 1, 1.5), scans.OBLIQUE))
    moving = scans.write_scan(tmp_path / "m.nii.gz", scans.grid((48, 56, 46), axes="LPS"), scans.bend)
    return fixed, moving


@pytest.fixture
def labels(tmp_path):
    return scans.write_labels(tmp_path / "l.nii.gz", scans.grid((48, 56, 46), axes="LPS"), scans.bend)


def test_simpleitk_repeats_our_resampling_from_the_written_warp(pair, engines, tmp_path):
    """`warp.nii.gz` alone, applied by ITK to the untouched moving scan, gives `warped.nii.gz`."""
    result = runtime.register(*pair, engines)
    result.save(tmp_path / "out")
    field = sitk.ReadImage(str(tmp_path / "out" / "warp.nii.gz"), sitk.sitkVectorFloat64)
    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in pair)
    again = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
    ours = sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz"))
    assert ours.GetDirection() == pytest.approx(fixed.GetDirection(), abs=1e-5)
    assert ours.GetOrigin() == pytest.approx(fixed.GetOrigin(), abs=1e-4)
    difference = sitk.GetArrayFromImage(again) - sitk.GetArrayFromImage(ours)
    assert np.abs(difference).max() < 1e-3 * 900


def test_without_iterations_the_warp_is_the_given_affine(pair, engines, tmp_path):
    matrix = np.array([[0.98, 0.1, 0, 2], [-0.1, 1.02, 0, -3], [0, 0.05, 1, 1.5], [0, 0, 0, 1]])
    np.savetxt(tmp_path / "start.txt", matrix)
    result = runtime.register(*pair, engines, Options(affine=str(tmp_path / "start.txt"), schedule="0,0,0,0"))
    points = result.fixed.grid.to_physical(np.array([[0, 0, 0], [5, 30, 7], [29, 43, 25]]))
    expected = points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(result.transform.points(points), expected, atol=1e-4)
    np.testing.assert_allclose(result.displacement[5, 30, 7], (expected - points)[1], atol=1e-4)


@pytest.mark.parametrize("stretch", [20.0, 0.1])
def test_an_affine_in_other_units_is_refused(engines, pair, tmp_path, stretch):
    np.savetxt(tmp_path / "start.txt", np.diag((stretch, 1, 1, 1)))
    with pytest.raises(InputError, match=r"--affine: .* stretches by .*in another tool's form"):
        runtime.register(*pair, engines, Options(affine=str(tmp_path / "start.txt")))


def test_auto_affine_finds_a_shifted_header(engines, tmp_path):
    fixed = scans.write_scan(tmp_path / "f.nii.gz", scans.grid())
    shift = np.array((30.0, -20.0, 10.0))
    place = scans.grid()
    write_volume(tmp_path / "m.nii.gz", scans.scan(place), place.crop(shift, place.shape))
    result = runtime.register(fixed, tmp_path / "m.nii.gz", engines, Options(schedule="0,0,0,0"))
    np.testing.assert_allclose(result.displacement[18, 21, 17], shift, atol=0.1)
    assert result.similarity_before > 0.999


def test_labels_follow_by_nearest_neighbour(pair, labels, engines, tmp_path):
    result = runtime.register(*pair, engines, QUICK, labels)
    assert result.warped_labels.dtype == np.int16
    assert set(np.unique(result.warped_labels)) == {0, 10, 250, 1035}
    result.save(tmp_path / "out")
    written = sitk.ReadImage(str(tmp_path / "out" / "warped_labels.nii.gz"))
    assert written.GetSize() == result.fixed.grid.shape
    assert written.GetPixelID() == sitk.sitkInt16


def test_report_tells_what_ran_and_why_it_stopped(pair, labels, engines, tmp_path):
    result = runtime.register(*pair, engines, Options(on_stop="revert", delta=(0.001,)), labels)
    result.save(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    for name, path in zip(("fixed", "moving", "moving_labels"), (*pair, labels), strict=True):
        assert report["inputs"][name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["engine"]["engines"] == engines.engine_set.hashes
    names = ("backend", "reason", "precision", "threads")
    assert [report["engine"][name] for name in names] == [getattr(engines, name) for name in names]
    assert engines.backend in BACKENDS and engines.precision in PRECISIONS and engines.reason.startswith("auto: ")
    assert f"{engines.precision}, {engines.threads} threads; {engines.reason})" in result.summary()
    assert report["options"]["on_stop"] == "revert" and report["options"]["delta"] == [0.001]
    assert report["iterations"]["counts"] == [list(result.iterations.counts[0])]
    levels = report["iterations"]["passes"][0]
    assert [level["level"] for level in levels] == [4, 3, 2, 1]
    for decision in (decision for level in levels for decision in level["decisions"]):
        assert decision["margin"] == pytest.approx(decision["after"] - decision["before"] - decision["delta"])
        assert decision["passed"] == (decision["margin"] >= 0)
    assert report["seconds"]["total"] == pytest.approx(sum(v for k, v in report["seconds"].items() if k != "total"))
    assert report["peak_memory_bytes"] > 10**7
    assert 0 <= report["folded_share"] < 1


def test_the_same_input_gives_the_same_bits(pair, engines):
    one, two = (runtime.register(*pair, engines) for _ in range(2))
    np.testing.assert_array_equal(one.displacement, two.displacement)
    np.testing.assert_array_equal(one.warped, two.warped)


def test_every_schedule_runs_on_scans(pair, engines):
    for options, counts in (
        (Options(affine="none", schedule="1,2,0,1"), [(1, 2, 0, 1)]),
        (Options(affine="none", schedule="cascade:2"), [(1, 1, 1, 1)] * 2),
    ):
        assert list(runtime.register(*pair, engines, options).iterations.counts) == counts
    for similarity in DEFAULT_DELTA:
        options = Options(affine="none", similarity=similarity, max_iterations=(2,))
        result = runtime.register(*pair, engines, options)
        assert all(1 <= count <= 2 for count in result.iterations.counts[0])


def test_one_fixed_side_serves_many_moving_images(engines):
    """A moving image gets the same flow alone and after others."""
    fixed, first = example_pair((24, 32, 16), seed=1)
    _, second = example_pair((24, 32, 16), seed=2)
    schedule = parse_schedule("1,2,1,1")
    side = engines.fixed_side(fixed, "ncc")
    flows = [iterstop.run(side.pair(moving), schedule).flow for moving in (first, second, first)]
    shared = [engines.fields.to_host(flow) for flow in flows]
    alone = [register_arrays(engines, fixed, moving, schedule).flow for moving in (first, second, first)]
    np.testing.assert_array_equal(shared, alone)


def test_results_appear_whole_or_not_at_all(pair, engines, tmp_path, monkeypatch):
    """A failure while writing leaves the earlier result as it was, and no partial file."""
    result = runtime.register(*pair, engines, QUICK)
    folder = tmp_path / "out"
    result.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == set(Outputs().names("f", "m", labels=False))
    from PIL import Image

    def full_disk(self, stream, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(InputError, match=r"--output: writing to .* failed \(No space left on device\)"):
        result.save(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_earlier_results_are_not_overwritten_unasked(pair, engines, tmp_path):
    result = runtime.register(*pair, engines, QUICK)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "warp.nii.gz").write_text("precious")
    with pytest.raises(InputError, match=r"already holds warp\.nii\.gz; add --overwrite"):
        result.save(tmp_path / "out")
    assert (tmp_path / "out" / "warp.nii.gz").read_text() == "precious"


def test_a_reason_without_a_number_is_said_too(pair, engines, tmp_path, monkeypatch):
    """Pillow's errors have a message but no error number."""

    def broken(*arguments):
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr("runtime.images.pictures.preview.write_preview", broken)
    with pytest.raises(InputError, match=r"--output: writing to .*out failed \(encoder error -2 when writing"):
        runtime.register(*pair, engines, QUICK).save(tmp_path / "out")


def test_ct_window(engines, tmp_path):
    """Hounsfield units with air at -1000: the window maps them to [0, 1], and what lies outside the scan is air."""
    place = scans.grid()
    for name, move in (("f", lambda points: points), ("m", lambda points: points + (4, 0, 0))):
        write_volume(tmp_path / f"{name}.nii.gz", (scans.scan(place, move) - 1000).astype(np.int16), place)
    options = Options(window=(-1000, 0), affine="none", schedule="0,0,0,0")
    result = runtime.register(tmp_path / "f.nii.gz", tmp_path / "m.nii.gz", engines, options)
    assert result.working.fixed.min() == 0 and result.working.fixed.max() > 0.5
    assert result.warped.min() == -1000


def test_memory_is_checked_before_work(pair, engines, monkeypatch):
    """There is enough memory for a registration in general, but not for this grid."""
    monkeypatch.setattr("runtime.host.machine.available_bytes", lambda: machine.ALWAYS + 10 * 2**20)
    with pytest.raises(InputError, match=r"--fixed: the working grid \(.*\) needs about .* GiB is available"):
        runtime.register(*pair, engines, QUICK)


def test_a_further_moving_scan_needs_less(pair, engines, monkeypatch):
    """The fixed scan's memory is already allocated and is not required again; the rest must still fit."""
    onto = runtime.FixedScan(pair[0], engines, QUICK)
    onto.register(pair[1])
    room = machine.ALWAYS
    monkeypatch.setattr("runtime.host.machine.available_bytes", lambda: room)
    onto.register(pair[1])
    with pytest.raises(InputError, match=r"needs? about"):
        runtime.FixedScan(pair[0], engines, QUICK).register(pair[1])
    room = 1
    with pytest.raises(InputError, match=r"needs? about"):
        onto.register(pair[1])


def test_scans_that_do_not_meet_say_so(engines, tmp_path):
    fixed = scans.write_scan(tmp_path / "f.nii.gz", scans.grid())
    place = scans.grid()
    write_volume(tmp_path / "m.nii.gz", scans.scan(place), place.crop((500, 0, 0), place.shape))
    with pytest.raises(InputError, match=r"moving image: is constant .* check that the two scans overlap"):
        runtime.register(fixed, tmp_path / "m.nii.gz", engines, QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image * np.nan, "moving image: has NaN or Inf"),
        (lambda image: image * 0 + 0.5, "moving image: is constant"),
        (lambda image: image * 255, r"moving image: got intensities 0 to .* expected \[0, 1\]"),
        (lambda image: image[:-1], "images: got shapes"),
        (lambda image: image[None], "images: got shapes"),
    ],
)
def test_arrays_are_checked(engines, change, message):
    fixed, moving = example_pair((16, 16, 16))
    with pytest.raises(InputError, match=message):
        register_arrays(engines, fixed, change(moving), parse_schedule("1,1,1,1"))


def test_engines_that_give_nan_are_found_out(engines, monkeypatch):
    """With fixed counts no similarity is computed during the loop; the result is checked nevertheless."""
    fixed, moving = example_pair((16, 16, 16))

    def broken(level, features):
        residual = np.zeros((*features.shape[:3], 3), np.float32)
        residual[0, 0, 0, 0] = np.nan
        return residual

    monkeypatch.setattr(engines.networks, "residual", broken)
    with pytest.raises(InputError, match="their similarity is nan after registration"):
        register_arrays(engines, fixed, moving, parse_schedule("1,1,1,1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(schedule="often"), "schedule: got 'often'"),
        (Options(similarity="mi"), "similarity: got 'mi'"),
        (Options(schedule="1,1,1,1", similarity="mi"), "similarity: got 'mi'"),
        (Options(on_stop="perhaps"), "on-stop: got 'perhaps'"),
        (Options(max_iterations=0), "max-iterations: got 0"),
        (Options(schedule="1,1,1,1", on_stop="keep"), "--on-stop: got keep, but --schedule 1,1,1,1 has no stop rule"),
        (Options(schedule="cascade:2", delta=0.1), "--delta: got 0.1, but --schedule cascade:2 has no stop rule"),
        (Options(schedule="1,1,1,1", max_iterations=3), "--max-iterations: got 3"),
        (Options(window=(5.0, 5.0)), "^--window: got 5,5, expected two finite numbers, the lower one first, such as"),
        (Options(window=(-5.0, float("inf"))), "^--window: got -5,inf, expected two finite numbers"),
        (Options(affine="/absent/start.txt"), "--affine"),
    ],
)
def test_options_are_checked_before_the_scans_are_read(engines, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        runtime.register(tmp_path / "absent.nii", tmp_path / "absent.nii", engines, options)


def test_what_cannot_be_opened_is_refused(engine_dir):
    for arguments, message in (
        ({"backend": "tpu"}, "--backend: got 'tpu', expected auto or one of"),
        ({"precision": "fp8"}, "--precision: got 'fp8', expected auto or one of"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "onnxruntime computes in fp32, fp16, not in bf16"),
        ({"threads": 0}, "--threads: got 0, expected 1 to"),
        ({"threads": 100_000}, "--threads: got 100000, expected 1 to"),
    ):
        with pytest.raises(InputError, match=message):
            runtime.open_engines(engine_dir, **arguments)


def test_delta_zero_is_a_delta(engines):
    assert Options(delta=0.0).resolved(engines.engine_set).delta == 0.0
    assert Options().resolved(engines.engine_set).delta == 0.005
    assert Options(similarity="mse").resolved(engines.engine_set).delta == DEFAULT_DELTA["mse"]


def test_closed_engines_say_so(engine_dir):
    with runtime.open_engines(engine_dir) as engines:
        pass
    with pytest.raises(InputError, match="engines: already closed"):
        register_arrays(engines, *example_pair((16, 16, 16)), parse_schedule("1,1,1,1"))


def test_threads_are_held_to_and_given_back(engine_dir):
    import numba

    before = numba.get_num_threads()
    with runtime.open_engines(engine_dir, threads=1) as engines, engines.running():
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before


def test_a_dark_voxel_is_not_the_background(engines, tmp_path):
    """Ringing makes some voxels of MR scans slightly negative; values outside the moving scan are 0 nevertheless."""
    place, small = scans.grid(), scans.grid((24, 28, 24))
    image = scans.scan(small)
    image[0, 0, 0] = -50
    write_volume(tmp_path / "m.nii.gz", image, small)
    fixed = scans.write_scan(tmp_path / "f.nii.gz", place)
    result = runtime.register(fixed, tmp_path / "m.nii.gz", engines, QUICK)
    assert result.warped[0, 0, 0] == 0


def test_labels_of_another_place_are_refused(pair, engines, tmp_path):
    place = scans.grid()
    far = scans.write_labels(tmp_path / "far.nii.gz", place.crop((900, 0, 0), place.shape))
    with pytest.raises(InputError, match=r"--moving-labels: .* does not overlap the moving scan"):
        runtime.register(*pair, engines, QUICK, far)


def test_overwriting_leaves_nothing_of_the_result_before(pair, labels, engines, tmp_path):
    runtime.register(*pair, engines, QUICK, labels).save(tmp_path / "out")
    runtime.register(*pair, engines, QUICK).save(tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(Outputs().names("f", "m", labels=False))


def test_volumes_already_read_are_taken_as_they_are(pair, engines):
    fixed, moving = (read_volume(path, "scan") for path in pair)
    by_volume = runtime.register(fixed, moving, engines, QUICK)
    by_path = runtime.register(*pair, engines, QUICK)
    np.testing.assert_array_equal(by_volume.warped, by_path.warped)


def test_results_are_in_the_order_of_files(pair, labels, engines):
    """First axis fastest, so that they are written without a transposition; the flow is a view of the loop's memory."""
    result = runtime.register(*pair, engines, QUICK, labels)
    for array in (result.warped, result.warped_labels, result.displacement):
        assert array.flags.f_contiguous
    assert result.transform.flow.shape == (3, *result.transform.grid.shape)


def test_large_images_are_let_go_before_the_loop(pair, engines, monkeypatch):
    """No normalised image is kept while the loop needs memory; both scans' voxels are warped after it."""
    volumes = []

    def remembered(volume, rule, argument):
        result = normalised(volume, rule, argument)
        volumes.append((argument, weakref.ref(result), weakref.ref(volume)))
        return result

    def loop(*arguments):
        gc.collect()
        alive.extend((argument, scan() is not None, volume() is not None) for argument, scan, volume in volumes)
        return run(*arguments)

    alive, run = [], scans_module.run_loop
    monkeypatch.setattr(reading, "normalised", remembered)
    monkeypatch.setattr(scans_module, "run_loop", loop)
    runtime.register(*pair, engines, QUICK)
    assert sorted(alive) == [("--fixed", False, True), ("--moving", False, True)]


def test_files_do_not_depend_on_threads(pair, engine_dir, tmp_path):
    for threads in (1, 2):
        with runtime.open_engines(engine_dir, threads=threads) as opened:
            runtime.register(*pair, opened, QUICK).save(tmp_path / str(threads))
    for name in Outputs().names("f", "m", labels=False)[:-2]:  # page and report have times in them
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_mouse_is_told_that_the_network_sees_few_voxels_of_it(engines, tmp_path):
    """The body at a fifth of its size spans 6 voxels of the working grid; a head spans 160."""
    paths = []
    for name in ("f", "m"):
        small = scans.grid()
        volume = scans.scan(small)
        paths.append(tmp_path / f"{name}.nii.gz")
        write_volume(paths[-1], volume, type(small)(small.shape, np.diag((0.2, 0.2, 0.2, 1)) @ small.affine))
    warnings = runtime.register(*paths, engines, QUICK).warnings
    assert any("spans only" in line and "voxel sizes in both headers by" in line for line in warnings)


def test_a_fixed_foreground_outside_the_field_of_view_gives_a_warning_with_its_share(engines, tmp_path):
    """Half of the body: the fixed scan's other half is where the transform is extrapolated."""
    whole = scans.grid()
    fixed = scans.write_scan(tmp_path / "f.nii.gz", whole)
    half = whole.crop((18, 0, 0), (18, 42, 34))
    moving = scans.write_scan(tmp_path / "m.nii.gz", half)
    result = runtime.register(fixed, moving, engines, QUICK)
    assert result.outside_view_share == pytest.approx(0.5, abs=0.03)
    assert any(
        "of the fixed foreground lies outside the moving scan's field of view" in line for line in result.warnings
    )


def test_nan_is_background_where_zero_is_named_for_it(engines, tmp_path):
    """As SPM writes voxels outside a brain."""
    data, grid = scans.scan(scans.grid()), scans.grid()
    plain, spm = tmp_path / "plain.nii.gz", tmp_path / "spm.nii.gz"
    write_volume(plain, data, grid)
    write_volume(spm, np.where(data == 0, np.float32(np.nan), data), grid)
    with pytest.raises(InputError, match="voxels that are NaN; set them"):
        runtime.register(plain, spm, engines, QUICK)
    found = runtime.register(spm, spm, engines, dataclasses.replace(QUICK, nan=0.0))
    assert np.array_equal(found.displacement, runtime.register(plain, plain, engines, QUICK).displacement)
