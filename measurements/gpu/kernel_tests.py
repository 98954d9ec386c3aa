"""The project's tests of the kernels, run on the GPU; then every kernel once under compute-sanitizer."""

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from measurements.gpu.part import Part

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ("tests/backends/test_fields.py", "tests/backends/test_kernels_cuda.py")
ON_GPU = {"RPNET_TEST_GPU": "1"}  # makes tests.backends.host_gpu.gpu open the GPU, not its stand-in
SANITIZER = "compute-sanitizer"
PLACES = "/usr/local/cuda*/bin/compute-sanitizer"
FOUND_SOMETHING = 86  # exit code that the sanitizer returns for errors; any code that nothing else uses
TEST_SECONDS, SANITIZER_SECONDS = 900, 600


@dataclass(frozen=True)
class KernelTestOutcome:
    """Outcome of pytest."""

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]

    def wrong(self) -> list[str]:
        found = [f"failed: {name}" for name in self.failed]
        return found if self.passed or found else ["no test ran on the GPU"]


def read_outcome(report: str) -> KernelTestOutcome:
    """Read the outcome from pytest's JUnit report; of skipped tests, each reason once."""
    passed, failed, skipped = 0, [], {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        kinds = {child.tag: child for child in case}
        if {"failure", "error"} & kinds.keys():
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            skipped[kinds["skipped"].get("message", "")] = None
        else:
            passed += 1
    return KernelTestOutcome(passed, tuple(failed), tuple(skipped))


def kernel_tests(sanitize: bool) -> Part:
    """Test all kernels against the reference implementation, on the GPU."""
    outcome, ending = _run_tests()
    part = Part("Kernels against the reference", record=vars(outcome), wrong=outcome.wrong())
    part.lines = [f"{outcome.passed} tests passed on the GPU, {len(outcome.failed)} failed."]
    if not outcome.passed and not outcome.failed:
        part.lines += ["", f"pytest ended with: {ending}"]
    part.notes = [f"tests skipped: {reason}" for reason in outcome.skipped]
    if sanitize:
        _sanitize(part)
    return part


def _run_tests() -> tuple[KernelTestOutcome, str]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-p", "no:cacheprovider", f"--junitxml={report}", "--show-capture=no"]
        code, output = _run([sys.executable, "-m", "pytest", *TESTS, *options], TEST_SECONDS, ON_GPU)
        last = output.strip().rpartition("\n")[2] or f"exit code {code}"
        if not report.is_file():
            return KernelTestOutcome(0, (), ()), last
        return read_outcome(report.read_text(encoding="utf-8")), last


def _sanitize(part: Part) -> None:
    """Add the result of memcheck for every kernel, run once on a small grid."""
    program = shutil.which(SANITIZER) or next(map(str, sorted(Path("/").glob(PLACES[1:]))), None)
    if program is None:
        part.notes.append(f"{SANITIZER} is not installed; memory accesses were not checked")
        return
    command = [program, "--tool", "memcheck", "--error-exitcode", str(FOUND_SOMETHING), "--target-processes", "all"]
    code, output = _run([*command, sys.executable, "-m", "measurements.gpu.kernel_times"], SANITIZER_SECONDS)
    part.record = {**part.record, "sanitizer": {"exit code": code, "output": output[-4000:]}}
    if code == 0:
        part.lines.append(f"{SANITIZER} (memcheck) finds no error in any kernel.")
    elif code == FOUND_SOMETHING:
        part.wrong.append(f"{SANITIZER}: {sanitizer_summary(output)}")
    else:
        part.notes.append(f"{SANITIZER} could not be run here: {sanitizer_summary(output)}")


def sanitizer_summary(output: str) -> str:
    """Return the sanitizer's first message, in one line."""
    marked = [line.strip("= \t") for line in output.splitlines() if line.startswith("=========")]
    messages = [line for line in marked if line and "COMPUTE-SANITIZER" not in line]
    return messages[0] if messages else output.strip().rpartition("\n")[2] or "no output"


def _run(command: list[str], seconds: float, variables: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command in the project's folder; return exit code and output, the code -1 if it took too long."""
    environment = {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"it took more than {seconds:.0f} s"
    return done.returncode, done.stdout
