"""Errors of a run are reported in one line, before its first step and before anything is written."""

import multiprocessing
import os
import pathlib
import signal
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.errors import InputError
from tests.train.training import AFFINE, generated_run, listed_run, refused, stop_after, subject, write_subjects
from train.data import sources, volumes
from train.fit import fit
from train.model.checkpoint import load_checkpoint
from train.model.network import RPNet
from train.options import FitOptions
from train.steps import numerics
from train.steps.memory import needed_bytes, step_bytes
from train.steps.run import Run

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture
def generated(tmp_path):
    return generated_run(tmp_path / "run", validation_pairs=1)


@pytest.fixture
def listed(tmp_path):
    return listed_run(tmp_path / "run", write_subjects(tmp_path))


def test_options_check_themselves(tmp_path):
    for change in (
        {"loss": "mse"}, {"steps": 0}, {"learning_rate": 0.0}, {"shape": (16, 17, 16)}, {"precision": "int8"},
        {"res_blocks": 7}, {"average": 1.0}, {"minutes": 0.0}, {"threads": 0}, {"device": "tpu"}, {"smooth": -1.0},
        {"schedule": "steps"}, {"validation_pairs": 0}, {"data": "x", "template": "mni152"}, {"dice": -1.0},
        {"data": "x", "generator": "varied"}, {"generator": "all"},
        {"iterations": (1, 1, 1)}, {"iterations": (1, 1, 0, 1)}, {"half_size": 1.5}, {"accumulate": 0},
        {"pictures": -1}, {"channels_last": "yes"}, {"cache": -1}, {"bending": -1.0}, {"log_jacobian": -1.0},
    ):  # fmt: skip
        with pytest.raises(InputError, match="^" + next(reversed(change))):
            FitOptions(tmp_path, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"augment": 1.0},
        {"validation_volumes": 3},
        {"data": "x", "validation": "y", "validation_volumes": 3},
        {"dice_labels": "deep"},
        {"data": "x", "dice": 1.0, "dice_labels": "deep"},
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, change):
    with pytest.raises(InputError, match="leave it out"):
        FitOptions(tmp_path, **change)


def test_a_checkpoint_to_start_from_is_looked_for_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"start: .*absent\.pt does not exist"):
        FitOptions(output=tmp_path, start=tmp_path / "absent.pt")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_generator_takes_are_refused(tmp_path, seed):
    with pytest.raises(InputError, match=f"^seed: got {seed}, expected"):
        FitOptions(tmp_path, seed=seed)


def test_a_folder_with_a_run_is_not_overwritten_and_resume_needs_one(generated):
    refused(replace(generated, resume=True), "resume:", "does not exist")
    fit(replace(generated, steps=1))
    refused(generated, "output:", "exists", "resume")


def test_resume_with_other_options_is_refused_by_name(generated):
    fit(replace(generated, steps=1))
    refused(replace(generated, resume=True, smooth=2.0, seed=6, dice=1.0), "smooth", "seed", "dice")


@pytest.mark.parametrize(
    ("option", "chosen"), [("precision", "bf16"), ("channels_last", "on")], ids=["precision", "layout"]
)
def test_resume_where_auto_chooses_otherwise_says_what_to_give(generated, monkeypatch, option, chosen):
    """Simulates a machine whose processor has no bf16 instructions."""
    usual = replace(generated, shape=(24, 24, 24), validation_pairs=1, precision="auto")
    started = {"precision": usual, "channels_last": replace(usual, channels_last="on")}[option]
    monkeypatch.setattr(numerics, "_computes_bf16", lambda: option == "precision")
    assert fit(started, stop_after(1)).interrupted
    monkeypatch.setattr(numerics, "_computes_bf16", lambda: False)
    resumed = replace(usual, resume=True)
    refused(resumed, "resume:", f"was written with {option} {chosen}", f"give {option} {chosen}")
    assert fit(replace(resumed, **{option: chosen}), stop_after(2)).steps == 2


def test_an_earlier_versions_checkpoint_names_the_list_it_was_trained_on(listed, tmp_path):
    last = fit(listed, stop_after(1)).last_path
    content = torch.load(last)
    del content["training"]["content"]
    torch.save(content, last)
    other = tmp_path / "other.csv"
    other.write_bytes(pathlib.Path(listed.data).read_bytes())
    refused(
        replace(listed, data=str(other), resume=True), "data:", f"got {other}", f"trained on {listed.data};", "`start`"
    )


def test_resume_on_another_device_is_refused(generated):
    last = fit(generated, stop_after(1)).last_path
    content = torch.load(last)
    content["training"]["chosen"]["device"] = "cuda"
    torch.save(content, last)
    refused(replace(generated, device="auto", resume=True), "written with device cuda", "would use cpu", "`start`")


def test_resume_with_other_numbers_of_pairs_is_refused(generated):
    fit(replace(generated, steps=6), stop_after(1))
    refused(replace(generated, resume=True, accumulate=2), "resume:", "1 pairs per step", "accumulate 2 x 1 processes")


def test_start_from_another_kind_of_network_is_refused(generated, tmp_path):
    first = fit(replace(generated, steps=1))
    refused(replace(generated, output=tmp_path / "b", start=first.last_path, res_blocks=1), "start:", "res_blocks=1")


class TestPrecision:
    def test_bf16_is_for_maps_that_the_library_computes_right(self, generated):
        refused(replace(generated, precision="bf16"), "precision: bf16 needs sizes >= 24", "smallest is 16")
        refused(replace(generated, precision="bf16", shape=(32, 32, 32), half_size=0.5), "bf16 needs", "smallest is 16")
        assert fit(replace(generated, precision="auto", steps=1)).precision == "fp32"

    def test_fp16_is_for_gpus(self, generated):
        refused(replace(generated, precision="fp16"), "precision: fp16 needs a CUDA device")

    def test_a_gpu_that_is_not_there(self, generated, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        refused(replace(generated, device="cuda"), "device: got cuda")

    def test_no_compiler(self, generated, monkeypatch):
        def broken(function):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

        monkeypatch.setattr(torch, "compile", broken)
        refused(replace(generated, compile=True), "compile:", "No working C++ compiler", "leave compile out")


class TestMemory:
    def test_a_run_that_does_not_fit(self, generated, monkeypatch):
        monkeypatch.setattr("runtime.host.machine.available_bytes", lambda: 10 * 2**20)
        refused(generated, "shape: training on (16, 16, 16) in fp32 needs about 0.1 GiB", "0.0 GiB is available")
        assert not generated.output.exists()

    def test_what_is_not_known_stops_nothing(self, generated, monkeypatch):
        monkeypatch.setattr("runtime.host.machine.available_bytes", lambda: None)
        assert fit(replace(generated, steps=1)).steps == 1

    def test_more_iterations_labels_and_larger_validation_volumes_need_more(self, generated, tmp_path):
        run = Run(generated)
        usual = needed_bytes(run)
        for change in ({"iterations": (1, 1, 1, 5)}, {"dice": 1.0}, {"bending": 1.0}, {"both_directions": True}):
            run.options = replace(generated, **change)
            assert needed_bytes(run) > usual
        scans = write_subjects(tmp_path, count=2, size=40)
        assert needed_bytes(Run(replace(generated, validation=str(scans)))) > usual

    def test_the_estimate_counts_what_autograd_keeps(self):
        """Bytes of the tensors a step's graph holds lie below the estimate of its peak, and not far below."""
        for counts in ((1, 1, 1, 1), (1, 1, 1, 3)):
            kept: dict[int, int] = {}

            def keep(tensor, kept=kept):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            images = torch.rand(2, 1, 1, 32, 32, 32)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                flows = RPNet().flows(*images, counts)
            assert flows[1].requires_grad
            assert 0.3 < sum(kept.values()) / step_bytes(32**3, "fp32", counts) < 1

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
    )
    def test_memory_that_runs_out_in_a_step_is_one_line(self, generated, monkeypatch, error):
        def full(*_):
            raise error

        monkeypatch.setattr(RPNet, "flows", full)
        refused(generated, "shape: memory ran out after step 0 on (16, 16, 16) in fp32", "smaller shape")

    def test_other_errors_stay_what_they_are(self, generated, monkeypatch):
        def broken(*_):
            raise RuntimeError("something else")

        monkeypatch.setattr(RPNet, "flows", broken)
        with pytest.raises(RuntimeError, match="something else"):
            fit(generated)


def test_a_loss_that_is_not_finite_ends_the_run(generated, monkeypatch):
    monkeypatch.setattr("train.loss.objective.smoothness", lambda flow: flow.sum() * float("nan"))
    refused(generated, "learning_rate: the loss exploded at step 1 (nan", "lower")


def test_flows_that_leave_no_image_are_called_an_explosion(generated):
    """A rate of 1 moves every weight by 1 in the first step; the loss is still finite then and reveals nothing."""
    with pytest.raises(InputError, match=r"^learning_rate: the loss exploded at step 2 \(.*lower learning rate[^\n]*$"):
        fit(replace(generated, learning_rate=1.0, warmup=0, clip=0.0))


def test_a_killed_worker_is_one_line_and_costs_no_step(listed):
    def kill(progress):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(InputError, match="workers: one was killed"):
        fit(replace(listed, workers=1, steps=500, validate_every=500), kill)
    assert load_checkpoint(listed.output / "last.pt").training["step"] >= 1


def test_what_a_worker_cannot_read_is_the_reader_s_one_line(listed, tmp_path):
    def remove(progress):
        (tmp_path / "images" / "s0.nii.gz").write_bytes(b"cut")

    options = replace(listed, workers=1, steps=500, validate_every=500, cache=0)
    with pytest.raises(InputError, match=r"^image: \S*s0\.nii\.gz [^\n]*$"):
        fit(options, remove)


def test_no_room_for_workers_is_one_line(listed, monkeypatch):
    def full(*arguments, **named):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("train.steps.loader.multiprocessing.Process", full)
    refused(replace(listed, workers=2), "workers: got 2, cannot be started (Resource temporarily unavailable); give 0")


def test_a_size_without_a_half(generated):
    refused(replace(generated, shape=(24, 16, 16), half_size=0.2), "half_size: (24, 16, 16)", "multiples of 16")


def test_generated_pairs_of_a_gpu_take_no_workers(generated, monkeypatch):
    made_here = sources.GeneratedPairs
    monkeypatch.setattr(sources, "GeneratedPairs", lambda *arguments: made_here(*arguments[:3], device="cpu"))
    with pytest.raises(InputError, match="workers: got 1, but generated pairs are made on the GPU"):
        sources.open_sources(replace(generated, workers=1), torch.device("cuda", 0))


def _one_voxel_short(folder):
    nib.save(nib.Nifti1Image(subject(9, size=15)[0], AFFINE), folder / "images" / "s3.nii.gz")


def _not_finite(folder):
    image = subject(5)[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "images" / "s5.nii.gz")


def _too_few(folder):
    (folder / "list.csv").write_text("image\nimages/s0.nii.gz\n")


def _relabel(folder, number, labels):
    """Replace labels 1 and 2 of a subject by the given ones."""
    named = np.array([0, *labels], np.int16)[subject(number)[1]]
    nib.save(nib.Nifti1Image(named, AFFINE), folder / "labels" / f"s{number}.nii.gz")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_one_voxel_short, ["s3.nii.gz", "not on the grid", "resample"]),
        (_not_finite, ["s5.nii.gz", "NaN"]),
        (_too_few, ["got 1 volumes", "expected 4"]),
        (
            lambda folder: _relabel(folder, 5, (10, 20)),
            ["validation: the label maps of pair 1", "share no", "[10, 20]"],
        ),
    ],
)
def test_a_bad_list_ends_before_the_first_step(listed, tmp_path, damage, words):
    """Other errors in lists and files: test_scan_list.py, test_volumes.py."""
    damage(tmp_path)
    refused(listed, *words)
    assert not listed.output.exists()


class TestDice:
    def test_needs_label_maps(self, listed, tmp_path):
        bare = replace(listed, data=str(tmp_path / "images"))
        refused(replace(bare, dice=1.0), "dice: 4 of 4 volumes have no label map", "s0.nii.gz first")
        assert fit(replace(bare, steps=1)).best_by == "NCC of IterStop"

    def test_any_two_maps_must_share_a_label_neighbours_in_the_list_or_not(self, listed, tmp_path, monkeypatch):
        for number, labels in ((1, (1, 10)), (2, (10, 20)), (3, (1, 10))):
            _relabel(tmp_path, number, labels)
        read, really = [], volumes.read_scan
        monkeypatch.setattr(volumes, "read_scan", lambda scan, shape: read.append(scan) or really(scan, shape))
        refused(replace(listed, dice=1.0, cache=0), "dice: s0.nii.gz and s2.nii.gz share no", "[1, 2] and [10, 20]")
        assert len(read) == 6 + 4, "all to check them, then those to train on once for their labels"
        assert sources.open_sources(listed).pair(0).labelled

    def test_a_map_of_nothing_shares_nothing(self, listed, tmp_path):
        _relabel(tmp_path, 1, (0, 0))
        refused(replace(listed, dice=1.0), "dice: s1.nii.gz holds no label above 0")


def test_sizes_that_are_no_multiple_of_eight_say_what_to_give(listed, tmp_path):
    write_subjects(tmp_path, size=13)
    refused(listed, "(13, 13, 13)", "give shape 16,16,16")
    assert fit(replace(listed, shape=(16, 16, 16), steps=1)).steps == 1


def test_auto_precision_needs_instructions_for_bf16(monkeypatch, tmp_path):
    options = FitOptions(tmp_path)
    for there, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(numerics, "_computes_bf16", lambda there=there: there)
        assert numerics.choose_numerics(options, torch.device("cpu"), smallest=80).precision == expected


def test_tensorboard_is_asked_for_before_any_work(generated, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(replace(generated, tensorboard=True), "tensorboard", "pip install tensorboard")
    assert not generated.output.exists()
    assert fit(replace(generated, steps=1)).steps == 1
