"""Recipe files: their options, precedence of the command line, and one-line messages for errors in them."""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from runtime.errors import InputError
from train.options import FitOptions
from train.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "train" / "recipes").glob("*.toml"))


def parsed(*arguments) -> dict:
    """Return the options that click passes to `train`, without running it."""
    return cli.main.commands["train"].make_context("train", [str(argument) for argument in arguments]).params


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        'generated = true\noutput = "runs/small"\nsteps = 7\nlearning-rate = 1e-3\nsmooth = 2\nclip = 1.0\n'
        'iterations = [1, 2, 3, 4]\nboth-directions = true\nloss = "squared"\n'
    )
    return path


def test_a_recipe_is_enough_and_the_command_line_comes_first(recipe):
    alone, changed = parsed("--recipe", recipe), parsed("--steps", 9, "--recipe", recipe, "--loss", "plain")
    assert alone["steps"] == 7 and alone["learning_rate"] == 1e-3 and alone["iterations"] == (1, 2, 3, 4)
    assert alone["both_directions"] and alone["generated"] and alone["output"] == Path("runs/small")
    assert changed["steps"] == 9 and changed["loss"] == "plain"
    assert {name for name in alone if alone[name] != changed[name]} == {"steps", "loss"}


def test_what_a_recipe_leaves_out_is_as_usual(recipe):
    usual = {field.name: field.default for field in dataclasses.fields(FitOptions)}
    found, named = parsed("--recipe", recipe), read_recipe(recipe)
    assert all(found[name] == usual[name] for name in usual.keys() - named.keys())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("learning_rate = 1e-3", "has learning_rate, which is not an option"),
        ("stepps = 3", "has stepps, which is not an option"),
        ('steps = "many"', "has steps = 'many', expected a whole number"),
        ("steps = 3.5", "has steps = 3.5, expected a whole number"),
        ("steps = true", "has steps = True, expected a whole number"),
        ('smooth = "1"', "has smooth = '1', expected a number"),
        ("template = 3", "has template = 3, expected a string"),
        ("start = 3", "has start = 3, expected a path as a string"),
        ("tensorboard = 1", "has tensorboard = 1, expected true or false"),
        ("iterations = [1, 2, 3]", "has iterations = [1, 2, 3], expected a list of 4 whole numbers"),
        ("shape = 80", "has shape = 80, expected a list of 3 whole numbers"),
        ('loss = "mse"', "has loss = 'mse', expected one of plain, squared"),
        ("[loss]", "has loss = {}, expected one of plain, squared"),
        ("steps = ", "cannot be read (Invalid value"),
        (f"steps = {'[' * 5000}", "cannot be read (maximum recursion depth exceeded"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_one_line_with_file_and_key(tmp_path, line, words):
    path = tmp_path / "bad.toml"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="^" + re.escape(f"recipe: {path} {words}")):
        read_recipe(path)
    result = CliRunner().invoke(cli.main, ["train", "--recipe", str(path), "--output", str(tmp_path / "run")])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and words in result.stderr


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"recipe: .*absent\.toml does not exist"):
        read_recipe(tmp_path / "absent.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_ship_are_runs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = parsed("--recipe", path)
    del values["quiet"]
    assert values.pop("generated") != bool(values["data"])
    assert FitOptions(**values).output == Path("runs") / path.stem


def test_the_recipe_of_the_weights_that_ship_is_the_command_of_their_card():
    (command,) = re.findall(r"python cli\.py train (.*?)```", (ROOT / "engines/MODEL_CARD.md").read_text(), re.DOTALL)
    assert parsed("--recipe", ROOT / "train/recipes/shipped.toml") == parsed(*shlex.split(command.replace("\\\n", "")))


class TestMakeTargets:
    """The commands that `make` would run, from its dry run in a separate folder."""

    def lines(self, folder: Path, target: str, *arguments: str) -> str:
        (folder / ".venv").mkdir(exist_ok=True)
        (folder / ".venv" / ".installed").touch()
        for name in ("requirements.txt", "requirements-runtime.txt"):
            (folder / name).touch()
        how = ("--dry-run", "--no-print-directory", "--old-file", ".venv/.installed", "-f", str(ROOT / "Makefile"))
        command = ("make", *how, target, *arguments)
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

    def test_the_long_run_starts_or_goes_on_from_what_is_there(self, tmp_path):
        start = "nice -n 19 .venv/bin/python cli.py train --recipe train/recipes/long.toml --threads 1"
        fresh = self.lines(tmp_path, "train-on")
        assert "-m export.from_engines --output runs/shipped.pt\n" in fresh
        assert fresh.strip().endswith(f"{start} --start runs/shipped.pt")
        (tmp_path / "train" / "recipes").mkdir(parents=True)
        (tmp_path / "train" / "recipes" / "long.pt").touch()
        kept = self.lines(tmp_path, "train-on")
        assert f"{start} --resume-from train/recipes/long.pt\n" in kept and "from_engines" not in kept
        (tmp_path / "runs" / "long").mkdir(parents=True)
        (tmp_path / "runs" / "long" / "last.pt").touch()
        assert f"{start} --resume\n" in self.lines(tmp_path, "train-on")
        assert "--threads 3 --resume\n" in self.lines(tmp_path, "train-on", "THREADS=3")

    def test_it_is_validated_on_real_pairs_where_there_are_any(self, tmp_path):
        (tmp_path / "runs" / "validation").mkdir(parents=True)
        (tmp_path / "runs" / "validation" / "pairs.csv").touch()
        given = "--threads 1 --validation runs/validation/pairs.csv --validation-pairs 10 --start"
        assert given in self.lines(tmp_path, "train-on")

    def test_what_is_kept_is_the_last_checkpoint(self, tmp_path):
        assert "cp runs/long/last.pt train/recipes/long.pt" in self.lines(tmp_path, "train-keep")

    def test_another_recipe_has_a_run_and_a_kept_checkpoint_of_its_own(self, tmp_path):
        assert "--recipe train/recipes/accurate.toml" in self.lines(tmp_path, "train-on", "RECIPE=accurate")
        kept = self.lines(tmp_path, "train-keep", "RECIPE=accurate")
        assert "cp runs/accurate/last.pt train/recipes/accurate.pt" in kept
