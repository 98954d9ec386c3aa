"""The commands of docs/guide/transforms.md exist, with these options, and the message it shows is the message."""

import re
import shlex
from pathlib import Path

import pytest

from tests import scans
from tests.known_pair import COMMANDS, make_pair, refused

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "transforms.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    return [line.partition("cli.py ")[2] for block in blocks for line in block.splitlines() if "cli.py " in line]


@pytest.mark.parametrize("line", commands())
def test_commands_are_parsed(line):
    """By click itself, not run: names, values and required options are right."""
    name, *words = shlex.split(line)
    COMMANDS.commands[name].make_context(name, words)


def test_every_command_is_shown():
    assert {line.split()[0] for line in commands()} == set(COMMANDS.commands)


def test_the_refusal_is_quoted_as_it_is(tmp_path, monkeypatch):
    pair = make_pair(tmp_path, grid=scans.grid((40, 44, 36)))
    pair.reference.rename(tmp_path / "target.nii.gz")
    (command, message), *_ = re.findall(r"^\$ python cli\.py (.*)\n(Error: .*)$", TEXT, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    line = refused(*shlex.split(command))
    assert line.replace("reference.nii.gz to", "target.nii.gz to") == message
