"""The rooms and their permitted imports, checked in the source, and that large libraries are only loaded on use.

`runtime` imports no other package of the project and never torch; its rooms import those below. `train` imports the
rooms up to images, and the CPU field operations; `export` imports `train` and `runtime`; `cli` imports everything, but
only inside a command. An engine library has one driver. Every rule is one test that lists all offenders.
"""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("runtime", "train", "export", "cli", "tests", "measurements")
# The rooms of `runtime`, in order: a room imports from itself and from those named before it.
ROOMS = (
    *("types", "errors", "host", "loop", "geometry", "images", "transforms", "backends"),
    *("pages", "registration", "workflows", "commands"),
)
APART = ({"transforms", "backends"}, {"host", "loop"})  # rooms of one level, which do not import each other
FOR_TRAINING = (*(f"runtime.{room}" for room in ROOMS[: ROOMS.index("transforms")]), "runtime.backends.fields")
DOORS = {"runtime": ("runtime",), "train": ("train", *FOR_TRAINING), "export": ("export", "train", "runtime")}
MOST_ENTRIES = 12  # of a folder of `runtime` or `train`, besides __init__.py and __main__.py
ENGINE_LIBRARIES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
DEVICE_LIBRARIES = ("cuda", "pycuda", "cupy")  # what drives a GPU, apart from the engines
# Loaded when they are needed, never by `import runtime` or `python cli.py --help`.
LATE = ("torch", "numba", "onnx", *ENGINE_LIBRARIES, *DEVICE_LIBRARIES, "matplotlib", "nilearn", "SimpleITK", "PIL")
LATE += ("scipy", "h5py", "pandas", "ants", "nitransforms", "jinja2", "contourpy")
OPTIONAL = (*DEVICE_LIBRARIES, "tensorrt", "tensorrt_rtx")  # drivers of these need not be importable everywhere
NO_ROOM_FOR = ("utils.py", "util.py", "common.py", "helpers.py", "helper.py", "misc.py", "config.py")


def imports(source: str, package: str = "", everywhere: bool = True) -> set[str]:
    """Dotted names a module imports, relative ones resolved against `package`; without `everywhere` at import time."""
    names = set()
    for node in ast.walk(ast.parse(source)) if everywhere else _at_import_time(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return names


def _at_import_time(node: ast.AST):
    """The nodes that run when a module is imported: not the bodies of functions, nor what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import_time(child)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def modules(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imports(path.read_text(encoding="utf-8"), package, everywhere)


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter whose only addition is the project's root."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)


BLOCK = """
    import importlib.abc, sys

    class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {blocked!r}:
                raise ImportError(f"{{name}} is blocked")

    sys.meta_path.insert(0, Block())
"""


class TestReadingImports:
    """The rules below rely on the parsing of imports, so that is tested first."""

    @pytest.mark.parametrize(
        "source, expected",
        [
            ("import torch.nn as nn", {"torch.nn"}),
            ("def f():\n    from torch import nn", {"torch.nn"}),
            ("from . import manifest", {"runtime.backends.manifest"}),
            ("from ..geometry.flow import warp", {"runtime.geometry.flow.warp"}),
            ("import importlib\nimportlib.import_module('torch')", {"importlib", "torch"}),
        ],
    )
    def test_every_way_to_import_is_seen(self, source, expected):
        assert imports(source, "runtime.backends") == expected

    def test_imports_inside_functions_do_not_run_at_import_time(self):
        source = "import numpy\nif True:\n    import numba\n\ndef f():\n    import torch"
        assert imports(source, everywhere=False) == {"numpy", "numba"}

    def test_a_package_does_not_contain_its_namesakes(self):
        assert within("runtime.geometry.flow", ("runtime.geometry",))
        assert not within("runtime.geometry_tools", ("runtime.geometry",))
        assert not within("torchvision", ("torch",))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(name: str) -> str:
    """The room of `runtime` a dotted name lies in, "" for names of the package itself."""
    return (name.split(".") + [""])[1]


def test_each_package_imports_only_through_its_doors():
    offenders = [
        f"{shown(path)}: {name}"
        for path in modules(*DOORS)
        for name in imports_of(path)
        if within(name, OURS) and not within(name, DOORS[path.relative_to(ROOT).parts[0]])
    ]
    assert offenders == []


def test_each_room_imports_only_from_those_below():
    offenders = []
    for path in modules("runtime"):
        here = path.relative_to(ROOT / "runtime").with_suffix("").parts[0]
        for name in imports_of(path) if here in ROOMS else ():
            room = room_of(name)
            if name.startswith("runtime.") and room in ROOMS:
                above = ROOMS.index(room) > ROOMS.index(here)
                if above or {room, here} in APART:
                    offenders.append(f"{shown(path)}: {name}")
    assert offenders == []


def test_every_room_is_on_the_list():
    entries = {
        path.stem for path in (ROOT / "runtime").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert entries == {*ROOMS, "__init__", "__main__"}


def test_no_folder_is_crowded():
    folders = {path.parent for path in modules("runtime", "train")}
    entries = {
        shown(folder): [
            path.name
            for path in folder.iterdir()
            if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("__")
        ]
        for folder in folders
    }
    assert {folder: len(names) for folder, names in entries.items() if len(names) > MOST_ENTRIES} == {}


def test_no_circle_of_imports():
    """Neither at import time nor inside functions, nor for type checkers alone."""
    dotted = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules(*DOORS)
    }
    graph = {}
    for module, path in dotted.items():
        targets = (name if name in dotted else name.rpartition(".")[0] for name in imports_of(path))
        graph[module] = {target for target in targets if target in dotted and target != module}
    assert circles(graph) == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of nodes that reach one another, by repeatedly removing nodes without edges in or out."""
    left = dict(graph)
    while True:
        entered = {target for targets in left.values() for target in targets}
        kept = {
            node: targets & left.keys() for node, targets in left.items() if node in entered and targets & left.keys()
        }
        if kept == left:
            return [sorted(kept)] if kept else []
        left = kept


def test_runtime_never_names_torch():
    assert [
        shown(path) for path in modules("runtime") if any(within(name, ("torch",)) for name in imports_of(path))
    ] == []


@pytest.mark.parametrize("library", ENGINE_LIBRARIES)
def test_an_engine_library_has_one_driver(library):
    files = [*modules(*DOORS), ROOT / "cli.py"]
    drivers = [path for path in files if any(within(name, (library,)) for name in imports_of(path))]
    assert len(drivers) <= 1
    assert all(path.is_relative_to(ROOT / "runtime" / "backends" / "networks") for path in drivers)


@pytest.mark.parametrize("library", DEVICE_LIBRARIES)
def test_a_gpu_is_driven_by_the_device_layer_alone(library):
    users = {path.name for path in modules(*DOORS) if any(within(name, (library,)) for name in imports_of(path))}
    assert users <= {"driver_cuda_python.py", "driver_pycuda.py", "nvrtc.py"}


def test_cli_imports_ours_only_inside_its_commands_but_for_what_they_have_in_common():
    names = imports_of(ROOT / "cli.py", everywhere=False)
    shared = ("runtime.commands", "runtime.host.stopping")
    assert not [name for name in names if within(name, OURS) and not within(name, shared)]


def test_commands_import_at_first_only_what_they_have_in_common():
    below = (*(f"runtime.{room}" for room in ("errors", "host")), "runtime.commands", "runtime.__version__")
    offenders = [
        f"{shown(path)}: {name}"
        for path in modules("runtime/commands")
        for name in imports_of(path, everywhere=False)
        if within(name, OURS) and not within(name, below)
    ]
    assert offenders == []


def test_no_file_without_a_name():
    unnamed = [shown(path) for path in modules(*DOORS, "tests", "measurements") if path.name in NO_ROOM_FOR]
    assert unnamed == []


class TestWithoutTheHeavyLibraries:
    def test_runtime_and_cli_are_imported_without_any_of_them(self):
        done = run_python(BLOCK.format(blocked=LATE) + "    import runtime, cli")
        assert done.returncode == 0, done.stderr

    def test_every_runtime_module_is_imported_without_torch(self):
        """Training and export are blocked as well, so an import the reading above cannot see would show here."""
        code = """
            import importlib, pkgutil, runtime
            for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
                try:
                    importlib.import_module(module.name)
                except ModuleNotFoundError as error:
                    if error.name.partition(".")[0] not in {optional}:
                        raise
            assert "torch" not in sys.modules and "numpy" in sys.modules
        """
        block = BLOCK.format(blocked=("torch", "train", "export"))
        done = run_python(textwrap.dedent(block) + textwrap.dedent(code.format(optional=OPTIONAL)))
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("library", ["torch", "numba.core", "onnxruntime"])
    def test_blocking_blocks(self, library):
        done = run_python(BLOCK.format(blocked=LATE) + f"    import {library}")
        assert f"ImportError: {library.partition('.')[0]}" in done.stderr
