"""A part of the check: its findings, as text and as plain data, and its errors."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import InputError, first_line
from runtime.host.files.whole_files import write_text

FORMAT, VERSION = "rpnet-gpu-check", 1
TEXT, DATA = "gpu_check.md", "gpu_check.json"


@dataclass
class Part:
    """One part.

    Attributes:
        title: heading of the part.
        lines: Markdown.
        record: the same as plain types, with everything that was measured.
        wrong: errors that fail the check, one line each.
        notes: missed targets and omitted checks, one line each.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    record: Any = None
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        marks = [f"- wrong: {line}" for line in self.wrong] + [f"- note: {line}" for line in self.notes]
        return "\n".join([f"## {self.title}", "", *self.lines, *([""] if self.lines and marks else []), *marks])


def guarded(title: str, make: Callable[[], Part]) -> Part:
    """Return the part that `make` makes; if it raises, a part with the error, so that the other parts still run."""
    try:
        return make()
    except InputError as error:
        return Part(title, wrong=[str(error)])
    except Exception as error:
        return Part(title, wrong=[f"{type(error).__name__}: {first_line(error)}"])


def verdict(parts: Sequence[Part]) -> str:
    """Return the verdict: all errors, or that there are none, and the notes."""
    wrong = [f"- {part.title}: {line}" for part in parts for line in part.wrong]
    notes = [f"- {part.title}: {line}" for part in parts for line in part.notes]
    head = f"Wrong: {len(wrong)}." if wrong else "Nothing is wrong."
    return "\n".join(["## Verdict", "", head, *wrong, *(["", "Notes:", *notes] if notes else [])])


def write(folder: Path, head: str, parts: Sequence[Part], done: bool) -> None:
    """Write text and data of the parts so far, each file complete or not at all."""
    texts = [head, *(part.text() for part in parts), verdict(parts) if done else "Not finished."]
    write_text(folder / TEXT, "\n\n".join(texts) + "\n")
    record = {"format": FORMAT, "version": VERSION, "finished": done, "parts": [vars(part) for part in parts]}
    write_text(folder / DATA, json.dumps(record, indent=1, default=str) + "\n")
