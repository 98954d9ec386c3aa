"""Write docs/api.md, the reference of the package's public names, from their docstrings (griffe2md)."""

import logging
import re
import sys
from pathlib import Path

import griffe
import griffe2md

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runtime  # noqa: E402

PAGE = ROOT / "docs" / "api.md"
HEAD = """# API reference

Public names of the package: `import rpnet` where it is installed, `import runtime` in a clone. Made from the docstrings
by `python docs/make_api_reference.py`; [From Python](guide/python.md) shows how they are used.
"""
SECTIONS = {
    "Registering": ("registration.", "loop."),
    "Images": ("images.", "geometry.grid"),
    "Transforms": ("transforms", "geometry."),
    "Scoring": ("workflows.",),
    "Errors": ("errors",),
}
SETTINGS = {
    "docstring_style": "google",
    "heading_level": 3,
    "show_root_full_path": False,
    "show_object_full_path": False,
    "show_category_heading": False,
    "show_signature_annotations": True,
    "signature_crossrefs": False,
    "separate_signature": True,
    "line_length": 100,
    "show_bases": False,
    "summary": False,
    "filters": ["!^_"],
    "show_if_no_docstring": False,
    "docstring_section_style": "list",
}


def reference() -> str:
    """Return the page."""
    logging.getLogger("griffe").setLevel(logging.ERROR)  # it warns of "a, b: ..." for several parameters at once
    package = griffe.load("runtime", search_paths=[ROOT], docstring_parser="google")
    objects = {name: _target(package[f"{module}.{name}"]) for name, module in runtime._MODULE.items()}
    anchors = {described.path: name.lower() for name, described in objects.items()}
    parts, left = [HEAD], dict(runtime._MODULE)
    for title, prefixes in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        for name in sorted(name for name, module in left.items() if module.startswith(prefixes)):
            del left[name]
            text = griffe2md.render_object_docs(objects[name], griffe2md.ConfigDict(**SETTINGS)).strip()
            parts.append(_linked(text.replace(f"`{objects[name].path}.", f"`{name}."), anchors) + "\n")
    if left:
        raise ValueError(f"public names in no section: {sorted(left)}")
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


def _target(described: griffe.Object | griffe.Alias) -> griffe.Object:
    return described.final_target if described.is_alias else described


def _linked(text: str, anchors: dict[str, str]) -> str:
    """Point links at the headings of this page, and leave out those to names that are not public."""

    def link(match: re.Match) -> str:
        label, path = match.groups()
        return f"[{label}](#{anchors[path]})" if path in anchors else label

    return re.sub(r"\[([^][]+)\]\(#([^)]+)\)", link, text)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
