"""The wheel: its content, its requirements, and that it registers with nothing else installed."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests import scans

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)(\[[^]]*\])?([^;]*)(?:;(.*))?$")


def required(name: str) -> set[str]:
    """Lines of a requirements file without comments, spaces, markers and other files."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    stated = (line.partition("#")[0].partition(";")[0].strip() for line in lines)
    return {line for line in stated if line and not line.startswith("-")}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", REQUIREMENT.match(requirement)[1]).lower()


def closure(requirements: list[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions that these need, and that those need, without extras."""
    found, wanted = {}, [name_of(requirement) for requirement in requirements]
    while wanted:
        name = wanted.pop()
        if name not in found:
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:  # for another platform or Python
                continue
            needs = found[name].requires or ()
            wanted += [name_of(need) for need in needs if "extra ==" not in (REQUIREMENT.match(need)[4] or "")]
    return list(found.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ("wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-cache-dir", "--quiet", "-w", str(folder))
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return Python of an environment with the wheel and its requirements, as links to the packages installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name == "posix")
    python = folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(wheel) as file:
        file.extractall(packages)
    for distribution in closure(PROJECT["dependencies"]):
        tops = {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    return python


def test_it_holds_the_runtime_and_the_engines_that_ship(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    source = {path.relative_to(ROOT / "runtime").as_posix() for path in (ROOT / "runtime").rglob("*.py")}
    assert {name.removeprefix("rpnet/") for name in names if name.endswith(".py")} == source
    manifest = json.loads((ROOT / "engines" / "manifest.json").read_text(encoding="utf-8"))
    graphs = {name for name in json.dumps(manifest).split('"') if name.endswith(".onnx")}
    assert graphs and {f"rpnet/shipped/{name}" for name in (*graphs, "manifest.json", "MODEL_CARD.md")} <= {*names}
    assert {"rpnet/py.typed", "rpnet/backends/fields/kernels.cu"} <= {*names}
    pages = ROOT / "runtime" / "pages"
    parts = [path for folder in ("assets", "templates") for path in (pages / folder).iterdir()]
    assert parts and {f"rpnet/pages/{path.relative_to(pages).as_posix()}" for path in parts} <= {*names}
    assert not [name for name in names if name.endswith((".pt", ".pyc"))]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"rpnet"}


def test_what_it_needs_is_what_the_requirements_say():
    assert set(PROJECT["dependencies"]) == required("requirements-runtime.txt")
    extras = {name: set(lines) for name, lines in PROJECT["optional-dependencies"].items()}
    assert extras["gpu"] == {line for line in required("requirements-gpu.txt") if not line.startswith("pytest")}
    assert extras["train"] <= required("requirements.txt") and extras["demo"] <= required("requirements.txt")
    assert extras["test"] <= required("requirements-tests.txt") | required("requirements.txt")
    assert extras["openvino"] <= set(PROJECT["dependencies"])


@pytest.mark.skipif(os.name != "posix", reason="packages are linked")
def test_it_registers_where_nothing_else_is_installed(installed, tmp_path):
    fixed = scans.write_scan(tmp_path / "fixed.nii.gz", scans.grid())
    moving = scans.write_scan(tmp_path / "moving.nii.gz", scans.grid(axes="LPS"), scans.bend)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([installed, *words], cwd=tmp_path, env=clean, capture_output=True, text=True)

    done = run("-m", "rpnet", "register", "--fixed", str(fixed), "--moving", str(moving), "--output", "aligned")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "aligned" / "report.json").read_text(encoding="utf-8"))
    assert report["iterations"]["similarity_after"] > report["iterations"]["similarity_after_affine"]
    code = "import rpnet, importlib.util as u; print(rpnet.__version__, u.find_spec('torch'), u.find_spec('runtime'))"
    done = run("-c", code)
    assert done.stdout == f"{importlib.import_module('runtime').__version__} None None\n", done.stderr
    version = run("-m", "rpnet", "--version")
    assert version.stdout.startswith("rpnet ") and version.returncode == 0


def test_the_commands_that_need_a_clone_are_named(installed, tmp_path):
    words = (installed, "-m", "rpnet", "benchmark", "--against", "torch")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "needs a clone of the project" in done.stderr
