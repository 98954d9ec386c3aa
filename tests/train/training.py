"""Small training runs: subjects to list, options of a few steps, and what to do with their results."""

import csv
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.errors import InputError
from train.data.image_pair import ImagePair
from train.fit import FitResult, fit
from train.model.checkpoint import load_checkpoint
from train.options import FitOptions

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def subject(number: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of a bright ball with a dark core, at another position in each subject, and its labels."""
    rng = np.random.default_rng(number)
    centre = size / 2 + rng.uniform(-1.5, 1.5, 3)
    axes = np.meshgrid(*(np.arange(size) - c for c in centre), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes)) + 0.2 * rng.standard_normal((size,) * 3)
    labels = np.select([radius < 3, radius < 6], [2, 1]).astype(np.int16)
    return np.select([labels == 2, labels == 1], [300, 900], 0).astype(np.int16), labels


def write_subjects(folder: Path, count: int = 6, size: int = 16) -> Path:
    """Write images into one folder, labels into another, and list.csv of both; return the list."""
    lines = ["image,labels"]
    for kind in ("images", "labels"):
        (folder / kind).mkdir(exist_ok=True)
    for number in range(count):
        for kind, array in zip(("images", "labels"), subject(number, size), strict=True):
            nib.save(nib.Nifti1Image(array, AFFINE), folder / kind / f"s{number}.nii.gz")
        lines.append(f"images/s{number}.nii.gz,labels/s{number}.nii.gz")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


def generated_run(output: Path, **changes) -> FitOptions:
    """Return the options of six steps on generated pairs."""
    usual = {
        "shape": (16, 16, 16), "steps": 6, "precision": "fp32", "device": "cpu", "threads": 1, "average": 0.9,
        "validate_every": 2, "validation_pairs": 2, "schedule": "cosine", "warmup": 2, "learning_rate": 1e-3,
        "clip": 1.0, "seed": 5,
    }  # fmt: skip
    return FitOptions(output, **(usual | changes))


def listed_run(output: Path, data: Path, **changes) -> FitOptions:
    """Return the options of four steps on listed volumes."""
    usual = {
        "steps": 4, "precision": "fp32", "device": "cpu", "threads": 1, "validate_every": 2, "validation_volumes": 2,
        "validation_pairs": 2, "learning_rate": 2e-3,
    }  # fmt: skip
    return FitOptions(output, data=str(data), **(usual | changes))


def same_pair(one: ImagePair, other: ImagePair) -> bool:
    """Return whether images and label maps are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def refused(options: FitOptions, *words: str) -> None:
    """Check that a run ends before its first step, with a one-line message that contains the words."""
    steps = []
    with pytest.raises(InputError) as caught:
        fit(options, steps.append)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not steps


def stop_after(step: int):
    """Return a progress function that sends Ctrl-C after a step."""

    def watch(progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def rows(result: FitResult) -> list[dict[str, str]]:
    """Return the rows of a run's log.csv."""
    with result.log_path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights to use and, as `trained.*`, those that training continues with."""
    saved = load_checkpoint(path)
    trained = saved.training["weights"] if saved.training else {}
    return {f"trained.{name}": tensor for name, tensor in trained.items()} | dict(saved.state)


def same_weights(first: Path, second: Path) -> bool:
    """Return whether the weights of two checkpoints are equal bit for bit."""
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
