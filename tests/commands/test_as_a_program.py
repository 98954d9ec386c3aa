"""The command line as a process: network access, left-over files, signals, exit codes, and optional libraries."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runtime.backends.registry import BACKENDS
from runtime.host.cache_folder import cache_folder
from tests import scans

ROOT = Path(__file__).resolve().parents[2]
ON_A_CPU = [name for name, backend in BACKENDS.items() if not backend.gpu and backend.available]
STOPPED = [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
CHOSEN = ("CI", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")  # what changes where things are kept, or whom libraries call
WATCHED = """
    import os, socket, sys

    def told(event, arguments):
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
            with open(os.environ["CALLS"], "a") as file:
                file.write(f"{event} {arguments}\\n")
            raise OSError("blocked")

    sys.addaudithook(told)
"""


@pytest.fixture
def pair(tmp_path):
    fixed = scans.write_scan(tmp_path / "f.nii.gz", scans.grid())
    return fixed, scans.write_scan(tmp_path / "m.nii.gz", scans.grid(), scans.bend)


@pytest.fixture
def command(pair, engine_dir, tmp_path):
    """`register` on the small pair into tmp_path/out."""
    fixed, moving = pair
    command = [sys.executable, ROOT / "cli.py", "register", "--engine-dir", engine_dir, "--fixed", fixed]
    return [*map(str, command), "--moving", str(moving), "--affine", "none", "--output", str(tmp_path / "out")]


@pytest.fixture
def watched(tmp_path):
    """Runs a command as a new user: no network access, and no files but its output.

    Every look-up and connection made by Python is recorded and fails; the telemetry of libraries is in Python. Home
    and temporary files share a folder.
    """
    home, site, folder = (tmp_path / name for name in ("home", "site", "folder"))
    for path in (home, site, folder):
        path.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(WATCHED))
    surroundings = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    surroundings |= {"HOME": str(home), "PYTHONPATH": str(site), "CALLS": str(tmp_path / "calls")}
    surroundings |= {"RPNET_CACHE": str(cache_folder()), "TMPDIR": str(home)}

    def run(command):
        done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "calls").exists(), (tmp_path / "calls").read_text()
        assert [*home.rglob("*"), *folder.iterdir()] == []

    return run


@pytest.mark.parametrize("backend", ON_A_CPU)
def test_nobody_is_called_and_nothing_is_left_in_the_home_folder(command, watched, backend):
    watched([*command, "--backend", backend])


def _evaluate(pair: tuple[Path, Path], folder: Path) -> list:
    """With labels, which pictures are drawn of."""
    labels = (scans.write_labels(folder / f"{side}.nii.gz", scans.grid()) for side in ("fl", "ml"))
    sides = zip(("--fixed", "--moving", "--fixed-labels", "--moving-labels"), (*pair, *labels), strict=True)
    return [*itertools.chain(*sides), "--affine", "none", "--schedule", "1,1,1,1"]


def _prepare(pair: tuple[Path, Path], folder: Path) -> list:
    """In processes of their own."""
    (folder / "scans.csv").write_text("\n".join(map(str, ("image", *pair))))
    data = ["--data", folder / "scans.csv", "--reference", "first"]
    return [*data, "--affine", "none", "--shape", "32,40,32", "--spacing", "2", "--jobs", "2"]


def _train(pair: tuple[Path, Path], folder: Path) -> list:
    pytest.importorskip("tensorboard")
    small = ["--generated", "--shape", "16,16,16", "--steps", "1", "--validation-pairs", "1", "--res-blocks", "0"]
    return [*small, "--device", "cpu", "--tensorboard", "--pictures", "1"]


@pytest.mark.parametrize("name, arguments", [("evaluate", _evaluate), ("prepare", _prepare), ("train", _train)])
def test_nor_do_the_other_commands(pair, watched, tmp_path, name, arguments):
    command = [sys.executable, ROOT / "cli.py", name, *arguments(pair, tmp_path), "--output", tmp_path / "out"]
    watched([str(part) for part in command])


def test_nor_does_the_benchmark(engine_dir, watched, tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, ROOT / "cli.py", "benchmark", "--engine-dir", engine_dir, "--shape", "16,16,16"]
    command += ["--backend", "native", "--against", "torch", "--runs", "1", "--no-files", "--no-start-up"]
    watched([str(part) for part in (*command, "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png")])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("backend", ON_A_CPU)
def test_a_fork_after_use_registers_or_says_why_not(pair, engine_dir, backend):
    code = f"""
        import os, signal, sys
        import runtime
        from runtime.errors import InputError

        scans, options = {[*map(str, pair)]!r}, runtime.Options(affine="none", schedule="1,1,1,1")

        def similarity():
            with runtime.open_engines({str(engine_dir)!r}, {backend!r}, threads=1) as engines:
                return float(runtime.register(*scans, engines, options).iterations.similarity)

        here = similarity()
        sys.stdout.flush()
        if child := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        signal.alarm(60)
        try:
            print("same" if similarity() == here else "another")
        except InputError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refusal = "--backend: openvino was used before this process was forked, which its threads do not survive; start"
    assert done.stdout.splitlines()[-1].startswith(refusal if backend == "openvino" else "same")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number, code, word", STOPPED)
def test_asked_to_stop_it_says_so_and_leaves_nothing(command, tmp_path, number, code, word):
    """While the result is written, on a simulated slow disk: each file waits for a second."""
    slow = f"""
        import sys, time
        from pathlib import Path
        from runtime.host.files import whole_files
        def sync(path):
            Path({str(tmp_path / "writing")!r}).touch()
            time.sleep(1)
        whole_files.sync = sync
        sys.argv = {command[1:]!r}
        import runpy
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    slowly = [sys.executable, "-c", textwrap.dedent(slow)]
    process = subprocess.Popen(slowly, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "writing").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert errors.splitlines()[-1].startswith(f"Stopped by {word}")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number, code, word", STOPPED)
def test_what_a_library_makes_of_being_stopped_is_told_as_that(number, code, word):
    """For example an interrupted import, which fails differently when it is repeated."""
    program = f"""
        import os, click
        from runtime.commands.terminal import OneLineGroup, run

        @click.command(cls=OneLineGroup, invoke_without_command=True)
        def group():
            try:
                os.kill(os.getpid(), {int(number)})
            finally:
                raise RecursionError("maximum recursion depth exceeded")

        run(group, "cli.py")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.strip().startswith(f"Stopped by {word}") and len(done.stderr.strip().splitlines()) == 1


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number, code, word", STOPPED)
def test_so_does_a_training_run_which_can_be_continued(tmp_path, number, code, word):
    pytest.importorskip("torch")
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "cli.py"), "train", "--generated", "--shape", "16,16,16", "--device", "cpu"]
    command += ["--res-blocks", "0", "--validation-pairs", "1", "--quiet", "--output", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and _lines(out / "log.csv") < 2:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert errors.strip().startswith(f"Stopped by {word}") and len(errors.strip().splitlines()) == 1
    assert sorted(path.name for path in out.iterdir()) == ["last.pt", "log.csv"]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name, arguments, word", [
    ("prepare", _prepare, "scan 1 of 2"),
    ("train", lambda pair, folder: [*_train(pair, folder), "--steps", "1000", "--workers", "2"], "1 of 1000 steps"),
])  # fmt: skip
def test_when_it_is_killed_its_workers_end_too(pair, tmp_path, name, arguments, word):
    """They hold its standard error, whose end is waited for."""
    command = [sys.executable, ROOT / "cli.py", name, *arguments(pair, tmp_path), "--output", tmp_path / "out"]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    while not process.stderr.readline().startswith(word):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=100)


@pytest.mark.skipif(os.name != "posix", reason="closing descriptors")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams_it_works(command, tmp_path, closed):
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command])
    assert done.returncode == 0
    assert (tmp_path / "out" / "report.json").is_file()


def test_readers_that_leave_are_no_error(command, tmp_path):
    """As of ``cli.py register ... 2>&1 | head -1``."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    assert (tmp_path / "out" / "report.json").is_file()
