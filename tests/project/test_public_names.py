"""The package's public names: loaded when they are used, listed for editors, documented."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import runtime

ROOT = Path(__file__).resolve().parents[2]
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


class TestApiReference:
    @pytest.mark.slow
    def test_it_is_what_the_docstrings_say(self):
        """After a change: python docs/make_api_reference.py."""
        place = ROOT / "docs" / "make_api_reference.py"
        specification = importlib.util.spec_from_file_location(place.stem, place)
        maker = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(maker)
        assert maker.PAGE.read_text(encoding="utf-8") == maker.reference()

    def test_no_link_is_dead(self):
        page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert len(anchors) == len(set(anchors)), "each heading has an anchor of its own"
        assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= set(anchors)
        assert {name.lower() for name in runtime.__all__} <= set(anchors)
