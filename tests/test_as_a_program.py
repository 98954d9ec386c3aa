"""The command line as a process among others: whom it calls, what it leaves, how it ends, and what it does without."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runtime.backends.table import BACKENDS
from runtime.cache import cache_folder
from tests import scans

ROOT = Path(__file__).resolve().parent.parent
ON_A_CPU = [name for name, backend in BACKENDS.items() if not backend.card and backend.available]
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


@pytest.mark.parametrize("backend", ON_A_CPU)
def test_nobody_is_called_and_nothing_is_left_in_the_home_folder(command, tmp_path, backend):
    """Every look-up and connection that Python knows of is noted and fails; the telemetry of libraries is Python's."""
    home, site = tmp_path / "home", tmp_path / "site"
    home.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(WATCHED))
    surroundings = {name: value for name, value in os.environ.items() if name != "CI"}
    surroundings |= {"HOME": str(home), "PYTHONPATH": str(site), "CALLS": str(tmp_path / "calls")}
    surroundings |= {"RPNET_CACHE": str(cache_folder()), "TMPDIR": str(home)}
    done = subprocess.run([*command, "--backend", backend], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "calls").exists(), (tmp_path / "calls").read_text()
    assert list(home.rglob("*")) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("backend", ON_A_CPU)
def test_a_fork_after_use_registers_or_says_why_not(pair, engine_dir, backend):
    code = f"""
        import os, signal, sys
        import runtime
        from runtime.geometry.errors import InputError

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
@pytest.mark.parametrize("number, code, word", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_asked_to_stop_it_says_so_and_leaves_nothing(command, tmp_path, number, code, word):
    """While the result is written, which a slow disk is made for: each file waits for a second."""
    slow = f"""
        import sys, time
        from pathlib import Path
        from runtime.geometry import whole_files
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
