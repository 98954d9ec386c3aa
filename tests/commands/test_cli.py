"""The command line, in process: commands, output and errors as a user sees them."""

import errno
import json
import os
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import cli
from runtime.commands.terminal import exit_code_of_failures, one_line_errors
from runtime.errors import InputError, ScarceError
from runtime.host.files.folder_lock import folder_lock
from runtime.images.formats.nifti_writer import write_volume
from runtime.registration.output.folder import Outputs
from tests import scans

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("register", "doctor", "report", "apply", "compose", "invert", "convert", "jacobian", "evaluate")
COMMANDS += ("export", "build", "prepare", "train", "demo", "benchmark", "warm-up", "calibrate", "cohort", "pairs")


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def failure(result) -> str:
    """The one line that a failed command prints after its stages."""
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and lines[0] == result.stderr.splitlines()[-1]
    return lines[0]


@pytest.fixture
def pair(tmp_path):
    fixed = scans.write_scan(tmp_path / "f.nii.gz", scans.grid())
    return fixed, scans.write_scan(tmp_path / "m.nii.gz", scans.grid(), scans.bend)


@pytest.fixture
def register(pair, engine_dir, tmp_path):
    """`register` on the small pair into tmp_path/out, with further arguments."""

    def call(*arguments):
        return run("register", *call.base, "--moving", moving, *arguments)

    fixed, moving = pair
    common = ("--output", tmp_path / "out", "--affine", "none")
    call.base = ("--engine-dir", engine_dir, "--fixed", fixed, *common)
    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_every_option(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    for parameter in cli.main.commands[command].params:
        assert parameter.opts[0] in result.output


def test_commands_are_listed():
    assert set(cli.main.commands) == set(COMMANDS)
    assert all(command in run("--help").output for command in COMMANDS)


def test_no_command_at_all_shows_the_help():
    result = run()
    assert result.exit_code == 0 and result.output == run("--help").output


def test_an_unknown_command_is_one_line():
    assert failure(run("registre")).startswith("Error: No such command 'registre'")


def test_register_writes_every_file_and_a_summary(register, tmp_path):
    labels = scans.write_labels(tmp_path / "l.nii.gz", scans.grid(), scans.bend)
    result = register("--moving-labels", labels, "--schedule", "1,1,1,1")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(Outputs().names("f", "m", labels=True))
    for word in ("engine", "iterations  (1, 1, 1, 1)", "similarity  ncc", "field", "time", "report.html"):
        assert word in result.stdout
    for stage in ("open engines", "read", "affine", "encode", "iterate", "apply", "write"):
        assert f"{stage} ..." in result.stderr


def test_outputs_selects_files(register, tmp_path):
    result = register("--schedule", "1,1,1,1", "--outputs", "warped, warp", "--compact")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"warped.nii.gz", "warp.nii.gz", "report.json"}
    assert "look at report.json first" in result.stdout and "inverse(forward" not in result.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["compact"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--outputs", "warped,flow"), "--outputs: got 'flow', expected one or several of warped, labels, "),
        (("--outputs", "warp,inverse", "--forward-only"), "--outputs: got inverse, which --forward-only leaves out"),
        (("--outputs", "warp", "--report-full"), "--report-full: got it with --outputs that lack report"),
    ],
)
def test_outputs_that_cannot_be_meant(register, tmp_path, arguments, message):
    assert message in failure(register(*arguments))
    assert not (tmp_path / "out").exists()


def test_the_verdict_comes_first_and_strict_makes_it_the_exit_code(register, tmp_path):
    """Noise that is not moved at all correlates with nothing: conservative limits suffice to say so."""
    noise = np.random.default_rng(0).random((30, 36, 28)).astype(np.float32)
    names = "noise", "noise2"
    for name in names:
        write_volume(tmp_path / f"{name}.nii.gz", noise, scans.grid(noise.shape))
    arguments = [word for name in names for word in ("--moving", tmp_path / f"{name}.nii.gz")]
    plain = run("register", *register.base, *arguments, "--schedule", "0,0,0,0")
    assert plain.exit_code == 0
    report = json.loads((tmp_path / "out" / "noise" / "report.json").read_text())
    assert report["verdict"]["verdict"] == "failed"
    (line, _) = (line for line in plain.stdout.splitlines() if line.startswith("verdict"))
    assert line.startswith("verdict     failed: ") and "after registration the images hardly correlate" in line
    strict = run("register", *register.base, *arguments, "--schedule", "0,0,0,0", "--strict", "--overwrite")
    assert strict.exit_code == 3
    assert (tmp_path / "out" / "noise2" / "report.json").exists()


def test_a_sound_registration_passes_strict(register):
    result = register("--schedule", "1,1,1,1", "--strict")
    assert result.exit_code == 0 and result.stdout.startswith("verdict     ")


def test_check_examines_and_writes_nothing(register, tmp_path):
    result = register("--check")
    assert result.exit_code == 0, result.stderr
    assert "by headers" in result.stdout and not (tmp_path / "out").exists()


def test_quiet_says_nothing(register):
    result = register("--quiet", "--schedule", "1,1,1,1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_a_result_is_kept_unless_overwrite_is_given(register, tmp_path):
    assert register("--schedule", "0,0,0,0").exit_code == 0
    first = (tmp_path / "out" / "warp.nii.gz").read_bytes()
    assert "already holds" in failure(register("--schedule", "1,1,1,1"))
    assert (tmp_path / "out" / "warp.nii.gz").read_bytes() == first
    assert register("--schedule", "1,1,1,1", "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "warp.nii.gz").read_bytes() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--schedule", "now"), "schedule: got 'now', expected iterstop, tci, thrift, four counts such as 1,2,2"),
        (("--delta", "much"), "got 'much', expected 1 or 4 comma-separated float value"),
        (("--delta", "0.1,0.2"), "expected 1 or 4"),
        (("--max-iterations", "0"), "max-iterations: got 0, expected at least 1"),
        (("--similarity", "mi"), "'mi' is not one of"),
        (("--backend", "cudnn"), "'cudnn' is not one of"),
        (("--threads", "0"), "0 is not in the range"),
        (("--affine", "start.txt"), "--affine: got 'start.txt', expected auto, affine, rigid, none or an existing"),
        (("--delta", "-1"), "--delta: got -1.0, expected 0 or more"),
        (("--schedule", "1,1,1,1", "--delta", "0.1"), "--delta: got 0.1, but --schedule 1,1,1,1 has no stop rule"),
        (("--smooth", "9"), "--smooth: got 9, expected 0 (no smoothing) to 5 voxels"),
        (("--threads", "5000"), "--threads: got 5000, expected 1 to"),
        (("--engine-dir", "README.md"), "--engine-dir: README.md is a file, expected the folder of an engine set"),
        (("--engine-dir", "nowhere"), "--engine-dir: no folder nowhere"),
        (("--fixed", "nowhere.nii.gz"), "--fixed: nowhere.nii.gz does not exist"),
        (("--moving-labels", "nowhere.nii"), "--moving-labels: nowhere.nii does not exist"),
        (("--moving-labels", "a.nii", "--moving-labels", "b.nii"), "--moving-labels: got 2 label maps for 1 moving"),
        (("--precision", "fp8"), "'fp8' is not one of"),
        (("--backend", "onnxruntime", "--precision", "bf16"), "onnxruntime computes in fp32, fp16, not in bf16"),
        (("--window", "300"), "expected 2 comma-separated float value"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(register, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    assert message in failure(register(*arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["--fixed", "--moving-labels", "--affine", "--engine-dir", "--output"])
def test_a_name_too_long_for_the_system_is_one_line(register, tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    line = failure(register(argument, f"{'x' * 300}.nii"))
    assert line.startswith(f"Error: {argument}: ") and "x" * 300 in line
    assert not (tmp_path / "out").exists()


def test_what_the_system_refuses_elsewhere_is_one_line(register, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "/somewhere/scan.nii")

    monkeypatch.setattr("runtime.registration.batch.files.plan_tasks", full)
    assert failure(register()) == "Error: /somewhere/scan.nii: No space left on device"


def test_a_moving_scan_of_no_known_type(pair, engine_dir, tmp_path):
    base = ("register", "--engine-dir", engine_dir, "--fixed", pair[0], "--output", tmp_path / "out")
    assert "--moving: README.md" in failure(run(*base, "--moving", "README.md")).replace(f"{ROOT}/", "")


def test_several_moving_scans_go_into_folders_of_their_names(register, pair, tmp_path):
    other = scans.write_scan(tmp_path / "other.nii.gz", scans.grid(axes="LPS"))
    labels = [scans.write_labels(tmp_path / f"l{n}.nii.gz", scans.grid()) for n in range(2)]
    arguments = ("--moving", other, "--moving-labels", labels[0], "--moving-labels", labels[1])
    result = register(*arguments, "--schedule", "1,1,1,1")
    assert result.exit_code == 0, result.stderr
    for name, label_map in zip(("m", "other"), labels, strict=True):
        folder = tmp_path / "out" / name
        assert {path.name for path in folder.iterdir()} == set(Outputs().names("f", "m", labels=True))
        assert json.loads((folder / "report.json").read_text())["inputs"]["moving_labels"]["path"] == str(label_map)
        assert f"wrote {folder}/" in result.stdout
    assert result.stdout.index(f"moving      {pair[1]}") < result.stdout.index(f"moving      {other}")


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_one_scan_that_fails_does_not_lose_the_others(register, tmp_path, quiet):
    """One line for the failure, results for the others, and an exit code that indicates the failure."""
    later = scans.write_scan(tmp_path / "later.nii.gz", scans.grid())
    result = register("--moving", tmp_path / "gone.nii", "--moving", later, "--schedule", "1,1,1,1", *quiet)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert lines == [f"Error: {tmp_path}/gone.nii: --moving: {tmp_path}/gone.nii does not exist"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"m", "later", "index.html"}
    assert all((tmp_path / "out" / name / "report.json").is_file() for name in ("m", "later"))
    assert bool(result.stdout) != bool(quiet)


def test_a_scan_given_twice_is_refused_before_any_work(register, pair, tmp_path):
    assert "would have the same name; give each image once" in failure(register("--moving", pair[1]))
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(pair, engine_dir):
    fixed, moving = pair
    result = run("register", "--engine-dir", engine_dir, "--fixed", fixed, "--moving", moving, "--output", fixed)
    assert "cannot write to" in failure(result)


def test_output_that_cannot_be_made(register, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("in the way")
    assert "out (File exists); choose another folder" in failure(register())
    (tmp_path / "out").unlink()

    def read_only(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert "out (Read-only file system); choose another folder" in failure(register())
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_replaced(pair, engine_dir, tmp_path):
    fixed, moving = pair
    scan = fixed.rename(tmp_path / "warped.nii.gz")
    before = scan.read_bytes()
    result = run("register", "--fixed", scan, "--moving", moving, "--output", tmp_path, "--overwrite")
    assert "--output: would replace the input" in failure(result)
    assert scan.read_bytes() == before


def test_a_demo_replaces_only_a_demo(tmp_path):
    (tmp_path / "fixed.nii.gz").write_text("precious")
    assert "holds other files" in failure(run("demo", "--output", tmp_path))
    assert (tmp_path / "fixed.nii.gz").read_text() == "precious"


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    for module in [name for name in sys.modules if name.split(".")[0] in ("train", "export")]:
        monkeypatch.delitem(sys.modules, module)
    line = failure(run("train", "--generated", "--output", tmp_path / "run"))
    assert "needs the package torch, which is not installed; pip install -r requirements.txt" in line


def test_choices_are_those_of_the_runtime():
    from runtime.backends.engines import SHIPPED
    from runtime.backends.registry import BACKENDS, PRECISIONS
    from runtime.images.similarity import SIMILARITIES
    from runtime.loop.stop_rules import ON_STOP

    options = {parameter.name: parameter for parameter in cli.main.commands["register"].params}
    assert set(options["backend"].type.choices) == {"auto", *BACKENDS}
    assert set(options["precision"].type.choices) == {"auto", *PRECISIONS}
    assert set(options["similarity"].type.choices) == SIMILARITIES.keys()
    assert set(options["on_stop"].type.choices) == set(ON_STOP)
    assert options["engine_dir"].default == SHIPPED


def test_register_runs_where_only_the_runtime_is_installed(pair, engine_dir, tmp_path):
    """In a process where torch and everything else that is not in requirements-runtime.txt cannot be imported."""
    import subprocess
    import sys

    blocked = ("torch", "onnx", "onnxscript", "scipy", "nilearn", "SimpleITK", "pytest", "train", "export")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import cli; cli.main()"
    fixed, moving = map(str, pair)
    arguments = ["register", "--engine-dir", engine_dir, "--fixed", fixed, "--moving", moving, "--output"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), tmp_path / "out"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(Outputs().names("f", "m", labels=False))


def test_export_says_what_is_wrong_with_a_checkpoint(tmp_path):
    (tmp_path / "no.pt").write_text("not a checkpoint")
    for path in ("absent.pt", "no.pt"):
        line = failure(run("export", "--checkpoint", tmp_path / path, "--engine-dir", tmp_path / "set"))
        assert path in line
    assert not (tmp_path / "set").exists()


def test_train_wants_exactly_one_source(tmp_path):
    for arguments in ((), ("--generated", "--data", "scans/")):
        assert "--data LIST or --generated" in failure(run("train", "--output", tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()


def test_train_options_and_their_defaults_are_those_of_the_library():
    import dataclasses

    from train.options import FitOptions

    fields = {field.name: field for field in dataclasses.fields(FitOptions)}
    values = cli.main.commands["train"].make_context("train", ["--generated", "--output", "run"]).params
    assert values.keys() - {"generated", "quiet"} == fields.keys()
    for name, field in fields.items():
        if field.default is not dataclasses.MISSING:
            assert values[name] == field.default, name


def test_train_export_register_from_nothing(tmp_path, pair):
    """The complete workflow at small size: weights from generated pairs, engines, a registered scan."""
    fixed, moving = pair
    run_dir, set_dir, out = tmp_path / "run", tmp_path / "set", tmp_path / "out"
    small = ("--shape", "16,24,16", "--validation-pairs", 1, "--precision", "fp32", "--res-blocks", 1, "--quiet")
    result = run("train", "--generated", "--output", run_dir, "--steps", 2, *small)
    assert result.exit_code == 0, result.stderr
    result = run("export", "--checkpoint", run_dir / "best.pt", "--engine-dir", set_dir, "--gate-shape", "16,16,24")
    assert result.exit_code == 0 and "published" in result.output, result.stderr
    assert json.loads((set_dir / "manifest.json").read_text())["network"]["res_blocks"] == 1
    result = run("register", "--engine-dir", set_dir, "--fixed", fixed, "--moving", moving, "--output", out)
    assert result.exit_code == 0, result.stderr
    assert (out / "report.json").is_file()


def test_the_engines_that_ship_are_whole_and_improve_a_pair(shipped):
    """The set in the repository: hashes, gate figures, and an improvement on a pair it was not trained on."""
    import runtime
    from runtime.backends.parity import example_pair
    from runtime.loop.stop_rules import iterstop_schedule, parse_schedule
    from runtime.registration.arrays import register_arrays

    fixed, moving = example_pair((64, 80, 64), seed=11, displacement=2.0)
    with runtime.open_engines(shipped) as engines:
        assert engines.engine_set.manifest["licence"] == "Apache-2.0"
        assert all(loop["largest"] <= 0.01 for loop in engines.engine_set.manifest["parity"]["loops"])
        before = register_arrays(engines, fixed, moving, parse_schedule("0,0,0,0")).similarity
        after = register_arrays(engines, fixed, moving, iterstop_schedule()).similarity
    assert after > before + 0.5 * (1 - before)


class TestExitCodes:
    """Temporary failures are distinguished from invalid input."""

    @pytest.mark.parametrize(
        "error, code, line",
        [
            (InputError("--fixed: got x"), 1, "--fixed: got x"),
            (ScarceError("--output: in use"), 75, "--output: in use"),
            (OSError(errno.ENOSPC, "No space left on device", "a.nii"), 75, "a.nii: No space left on device"),
            (OSError(errno.EACCES, "Permission denied", "a.nii"), 1, "a.nii: Permission denied"),
            (MemoryError(), 75, "memory ran out (none available); close other programs"),
            (RuntimeError("can't start new thread"), 75, "the system allows no further threads; close other programs"),
            (EOFError("Ran out of input"), 1, "a file ends too early (Ran out of input)"),
        ],
    )
    def test_of_a_command(self, error, code, line):
        @click.command()
        @one_line_errors
        def command():
            raise error

        result = CliRunner().invoke(command)
        assert result.exit_code == code
        assert result.stderr.startswith(f"Error: {line}") and result.stderr.count("\n") == 1

    def test_of_one_that_went_on(self):
        assert [exit_code_of_failures(only_scarcity) for only_scarcity in (True, False)] == [75, 1]

    def test_another_run_holds_the_folder(self, register, tmp_path):
        with folder_lock(tmp_path / "out"):
            result = register()
        assert result.exit_code == 75
        assert failure(result).startswith(f"Error: --output: {tmp_path / 'out'} is in use by process {os.getpid()} on")
