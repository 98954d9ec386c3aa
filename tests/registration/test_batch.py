"""One fixed scan and several moving ones: shared work changes no bit, and a failing scan does not affect the others."""

import gc
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.backends import registry
from runtime.errors import InputError
from runtime.host.background import Jobs
from runtime.images.intensity import WindowRule
from runtime.registration import warmup
from runtime.registration.batch import files as batch
from runtime.registration.batch.files import EngineChoice, Task, plan_tasks, register_files
from runtime.registration.options import Options
from runtime.registration.output import saving
from runtime.registration.output.folder import Outputs
from runtime.registration.reading import Reading
from tests import scans

QUICK = Options(affine="none", schedule="1,1,1,1")


@pytest.fixture
def fixed(tmp_path):
    return scans.write_scan(tmp_path / "f.nii.gz", scans.grid((30, 44, 26), (1.2, 1, 1.5), scans.OBLIQUE))


@pytest.fixture
def moving_scans(tmp_path):
    """Three moving scans on grids of their own; the second has labels."""
    other = scans.grid((40, 44, 52), (1.1, 1.2, 0.9), axes="PIR")
    turned = scans.grid((38, 42, 36), rotation=scans.OBLIQUE)
    first = scans.write_scan(tmp_path / "m.nii.gz", scans.grid((48, 56, 46), axes="LPS"), scans.bend)
    second = scans.write_scan(tmp_path / "m2.nii.gz", other, lambda points: scans.bend(points) + (1, 0, -2))
    third = scans.write_scan(tmp_path / "m3.nii.gz", turned)
    labels = scans.write_labels(tmp_path / "l2.nii.gz", other, lambda points: scans.bend(points) + (1, 0, -2))
    return [(first, None), (second, labels), (third, None)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [Options(), Options(affine="none", similarity="lncc", max_iterations=2)])
def test_a_fixed_scan_made_ready_once_gives_what_registering_alone_gives(fixed, moving_scans, engines, options):
    """Bit for bit, in any order, and again."""
    onto = runtime.FixedScan(fixed, engines, options)
    alone = [runtime.register(fixed, moving, engines, options, labels) for moving, labels in moving_scans]
    for number in (2, 0, 1, 0):
        one, other = onto.register(*moving_scans[number]), alone[number]
        for name in ("warped", "displacement", "warped_labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.transform.affine, other.transform.affine)
        np.testing.assert_array_equal(one.working.warped, other.working.warped)
        assert one.iterations.passes == other.iterations.passes
        assert str(one.affine_initialisation) == str(other.affine_initialisation)
        assert one.warnings == other.warnings and one.sources.keys() == other.sources.keys()


def test_times_of_the_fixed_scan_are_in_the_first_result(fixed, moving_scans, engines):
    onto = runtime.FixedScan(fixed, engines, QUICK)
    first, second = (onto.register(*moving_scans[0]).seconds for _ in range(2))
    assert "normalise" in first and "normalise" not in second
    assert {"read", "affine", "resample", "encode", "iterate", "finish", "apply"} <= first.keys() & second.keys()


def test_a_moving_scan_that_fails_leaves_the_fixed_one_usable(fixed, moving_scans, engines, tmp_path):
    onto = runtime.FixedScan(fixed, engines, QUICK)
    with pytest.raises(InputError, match=r"--moving: .*absent\.nii does not exist"):
        onto.register(tmp_path / "absent.nii")
    expected = runtime.register(fixed, moving_scans[0][0], engines, QUICK)
    np.testing.assert_array_equal(onto.register(moving_scans[0][0]).warped, expected.warped)


class TestPlan:
    """Assignment of result folders to moving scans."""

    def plan(self, *moving, labels=(), masks=()):
        return plan_tasks(Path("out"), *([Path(path) for path in paths] for paths in (moving, labels, masks)))

    def test_one_goes_into_the_folder_itself(self):
        assert self.plan("a/scan.nii.gz") == (Task(Path("a/scan.nii.gz"), None, Path("out")),)

    def test_several_get_folders_of_their_names(self):
        moving = ("a/one.nii.gz", "two.v1.nii", "THREE.MGZ", "four.mgh")
        assert [task.folder for task in self.plan(*moving)] == [
            Path("out") / name for name in ("one", "two.v1", "THREE", "four")
        ]

    def test_labels_follow_in_order(self):
        tasks = self.plan("a.nii", "b.nii", labels=("x.nii", "y.nii"))
        assert [task.labels for task in tasks] == [Path("x.nii"), Path("y.nii")]

    def test_scans_of_one_name_are_told_apart_by_their_folders(self):
        """As `prepare` does it: every subject of FreeSurfer has a norm.mgz."""
        tasks = self.plan("01/mri/norm.mgz", "02/mri/NORM.mgz", "03/t1.nii")
        assert [task.folder for task in tasks] == [Path("out") / name for name in ("01_mri_norm", "02_mri_NORM", "t1")]

    @pytest.mark.parametrize("other", ["a/scan.nii", "a/SCAN.mgz", "a/scan.nii.gz"])
    def test_names_that_clash_are_refused(self, other):
        line = r"--moving: the results of a/scan\.nii\.gz and .* would have the same name"
        with pytest.raises(InputError, match=line):
            self.plan("first.nii", "a/scan.nii.gz", other)

    def test_masks_must_be_as_many_as_scans(self):
        with pytest.raises(InputError, match=r"--moving-mask: got 1 masks for 2 moving scans, expected one for each"):
            self.plan("a.nii", "b.nii", masks=("x.nii",))

    @pytest.mark.parametrize("labels", [("x.nii",), ("x.nii", "y.nii", "z.nii")])
    def test_labels_must_be_as_many_as_scans(self, labels):
        with pytest.raises(InputError, match=r"--moving-labels: got . label maps for 2 moving scans, expected one for"):
            self.plan("a.nii", "b.nii", labels=labels)


class TestJobs:
    def test_with_one_thread_work_is_done_in_the_callers_when_it_is_taken(self):
        begun = []
        with Jobs(1) as jobs:
            job = jobs.start(lambda: begun.append(threading.current_thread()))
            assert not jobs.beside and begun == []
            job.take()
        assert begun == [threading.current_thread()]

    def test_with_two_it_is_done_beside(self):
        done = threading.Event()
        with Jobs(2) as jobs:
            jobs.start(done.set)
            assert jobs.beside and done.wait(timeout=30)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_errors_come_out_where_the_result_is_taken(self, threads):
        with Jobs(threads) as jobs:
            job = jobs.start(int, "no number")
            with pytest.raises(ValueError, match="no number"):
                job.take()

    def test_a_result_that_was_taken_is_not_held(self):
        class Large:
            pass

        with Jobs(2) as jobs:
            job = jobs.start(Large)
            reference = weakref.ref(job.take())
            jobs.start(int).take()  # the thread has turned to something else
            gc.collect()
            assert reference() is None


@pytest.mark.parametrize("looked_for", [True, False])
def test_scans_are_read_while_kernels_start_and_garbage_is_treated_as_before(fixed, monkeypatch, looked_for):
    """The hidden module is not needed for reading; a disabled garbage collector stays disabled."""
    monkeypatch.delitem(sys.modules, warmup.LINEAR_ALGEBRA, raising=False)
    was = gc.isenabled()
    (gc.enable if looked_for else gc.disable)()
    try:
        with warmup._minimal_numba(), Jobs(2) as jobs:
            assert sys.modules[warmup.LINEAR_ALGEBRA] is None and not gc.isenabled()
            scan = Reading(jobs, WindowRule(0, 1000)).scan(fixed, "--fixed").take()
        assert scan.volume.grid.shape == (30, 44, 26)
        assert gc.isenabled() == looked_for and warmup.LINEAR_ALGEBRA not in sys.modules
    finally:
        (gc.enable if was else gc.disable)()
        gc.unfreeze()


class TestFiles:
    """`register_files`, as the command line uses it."""

    @pytest.fixture
    def tasks(self, moving_scans, tmp_path):
        """Two of three have labels; the first, whose label map is missing, must fail."""
        (first, _), (second, labels), (third, _) = moving_scans
        folders = [tmp_path / "out" / name for name in ("m", "m2", "m3")]
        return [
            Task(first, tmp_path / "absent.nii", folders[0]),
            Task(second, labels, folders[1]),
            Task(third, None, folders[2]),
        ]

    @pytest.mark.parametrize("threads", [1, 2])
    def test_what_is_wrong_with_one_leaves_the_others(self, fixed, tasks, engine_dir, threads):
        """Files are those of a registration alone, byte for byte; a scan that failed leaves nothing."""
        engines = EngineChoice(engine_dir, threads=threads)
        outcomes = list(register_files(fixed, tasks, engines, QUICK))
        assert [outcome.task for outcome in outcomes] == tasks
        assert "--moving-labels" in str(outcomes[0].error) and not tasks[0].folder.exists()
        for task, outcome in zip(tasks[1:], outcomes[1:], strict=True):
            alone = Task(task.moving, task.labels, task.folder.parent / "alone" / task.folder.name)
            (expected,) = register_files(fixed, [alone], engines, QUICK)
            assert outcome.error is None and expected.error is None
            names = Outputs().names("f", "m", labels=task.labels is not None)
            assert {path.name for path in task.folder.iterdir()} == set(names)
            for name in names[:-2]:  # page and report have times in them
                assert (task.folder / name).read_bytes() == (alone.folder / name).read_bytes(), name

    def test_a_disk_that_refuses_one_result_leaves_the_others(self, fixed, tasks, engine_dir, monkeypatch):
        def save(result, folder, *arguments):
            if folder == tasks[1].folder:
                raise InputError("--output: writing failed")
            write(result, folder, *arguments)

        write = saving.save
        monkeypatch.setattr(saving, "save", save)
        outcomes = list(register_files(fixed, tasks, EngineChoice(engine_dir, threads=2), QUICK))
        assert [outcome.error is None for outcome in outcomes] == [False, False, True]
        assert (tasks[2].folder / "report.json").is_file() and not tasks[1].folder.exists()

    def test_folders_are_checked_before_any_work(self, fixed, tasks, engine_dir):
        tasks[2].folder.mkdir(parents=True)
        (tasks[2].folder / "warp.nii.gz").write_text("precious")
        with pytest.raises(InputError, match=r"m3 already holds warp\.nii\.gz"):
            list(register_files(fixed, tasks, EngineChoice(engine_dir), QUICK))
        assert not tasks[1].folder.exists()

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"threads": 5000}, "--threads: got 5000, expected 1 to"),
            ({"threads": 0}, "--threads: got 0, expected 1 to"),
            ({"precision": "fp8"}, "--precision: got 'fp8'"),
            ({"backend": "onnxruntime"}, "--backend: onnxruntime needs the package onnxruntime"),
            ({}, "--backend: got auto, but no backend can run"),
        ],
    )
    def test_what_cannot_run_is_refused_before_any_work(self, fixed, tasks, engine_dir, monkeypatch, choice, message):
        """No thread is started, nothing is compiled, no scan is read, though no library is installed."""

        def early(*arguments, **options):
            pytest.fail("work began")

        monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
        for name in ("Jobs", "Reading", "start_kernels", "open_set"):
            monkeypatch.setattr(batch, name, early)
        with pytest.raises(InputError, match=message):
            list(register_files(fixed, tasks, EngineChoice(engine_dir, **choice), QUICK))

    def test_a_fixed_scan_that_cannot_be_read_stops_all(self, tasks, engine_dir, tmp_path):
        with pytest.raises(InputError, match=r"--fixed: .*nowhere\.nii does not exist"):
            list(register_files(tmp_path / "nowhere.nii", tasks, EngineChoice(engine_dir), QUICK))
        assert not any(task.folder.exists() for task in tasks)

    @pytest.mark.slow
    def test_one_result_waits_at_most(self, fixed, moving_scans, engine_dir, tmp_path, monkeypatch):
        """However slow the disk is: while the next one is computed, and in the hands of the caller none."""

        def registered(*arguments):
            gc.collect()
            alive.append(sum(reference() is not None for reference in results))
            result = register(*arguments)
            results.append(weakref.ref(result))
            return result

        def save(*arguments):
            time.sleep(0.2)
            write(*arguments)

        alive, results, register, write = [], [], batch.FixedScan.try_register, saving.save
        monkeypatch.setattr(batch.FixedScan, "try_register", registered)
        monkeypatch.setattr(saving, "save", save)
        tasks = [Task(moving_scans[0][0], None, tmp_path / f"out{n}") for n in range(4)]
        for outcome in register_files(fixed, tasks, EngineChoice(engine_dir, threads=2), QUICK):
            assert outcome.error is None
        assert len(alive) == 4 and max(alive) <= 1
