"""The documents: their commands are parsed by click, their links have targets."""

import re
import shlex
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "engines" / "MODEL_CARD.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(document: Path) -> list[str]:
    """Lines of code blocks that call the command line, without comments; quoted sessions (``$ ...``) are left out."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in found if language in ("", "bash", "sh")]
    lines = [line.split(" #")[0].strip() for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [line for line in lines if "cli.py " in line and not line.startswith("$")]


@pytest.mark.parametrize("line", sorted({line for document in DOCUMENTS for line in commands(document)}))
def test_commands_exist_with_these_options(line):
    """By click itself, not run: names, values and required options are right."""
    words = shlex.split(line.partition("cli.py ")[2])
    context = cli.main.make_context("cli.py", words)
    name, command, rest = cli.main.resolve_command(context, words)
    command.make_context(name, rest, parent=context)


def test_the_readme_shows_the_main_commands():
    shown = " ".join(commands(ROOT / "README.md"))
    assert all(f"cli.py {command}" in shown for command in ("register", "apply", "evaluate", "export", "train"))


def test_links_lead_to_files():
    absent = []
    for document in DOCUMENTS:
        targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        files = [target for target in targets if "://" not in target]
        absent += [f"{document.relative_to(ROOT)}: {file}" for file in files if not (document.parent / file).exists()]
    assert absent == []


def test_nothing_is_left_to_fill_in():
    marked = [path for path in DOCUMENTS if re.search(r"TODO|MEASURE\b|@@|XXX", path.read_text(encoding="utf-8"))]
    assert marked == []
