"""The package's public names: loaded when they are used, listed for editors, documented."""

import ast
import inspect
from pathlib import Path

import runtime

STUB = Path(runtime.__file__).with_suffix(".pyi")


def stub_names() -> dict[str, str]:
    """Name -> module, as the stub file imports them."""
    found = {}
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1 and all(alias.name == alias.asname for alias in node.names)
            found |= {alias.name: node.module for alias in node.names}
    return found


def test_the_stub_lists_what_is_loaded():
    assert stub_names() == runtime._MODULE


def test_every_name_is_there_and_documented():
    undocumented = [name for name in runtime.__all__ if not inspect.getdoc(getattr(runtime, name))]
    assert undocumented == [] and set(runtime.__all__) <= set(dir(runtime))


def test_public_methods_are_documented_and_typed():
    kinds = [kind for kind in map(runtime.__getattr__, runtime.__all__) if inspect.isclass(kind)]
    lacking = []
    for kind in kinds:
        for name, member in vars(kind).items():
            function = getattr(member, "fget", None) or getattr(member, "func", None) or member
            if not name.startswith("_") and inspect.isfunction(function) and kind.__module__.startswith("runtime"):
                typed = "return" in function.__annotations__
                if not (inspect.getdoc(function) and typed):
                    lacking.append(f"{kind.__name__}.{name}")
    assert lacking == []
