"""Rendering of pages from templates (Jinja2), with their styles and scripts inlined."""

import base64
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError
from ..host.files.whole_files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
MARK, BEGINNING = b'name="generator" content="rpnet', 4096  # of every page, and where it is
VERDICT_WORDS = {"ok": "ok", "look": "look", "failed": "failed", None: "no verdict"}
VERDICT_SIGNS = {"ok": "✓", "look": "!", "failed": "✕", None: "?"}  # so that nothing hangs on colour alone


def write_page(path: Path, template: str, **facts: Any) -> None:
    """Write a page, complete or not at all; see `render`.

    Raises:
        InputError: there is a file of this name that is no page of ours.
    """
    check_ours(path)
    write_text(path, render(template, **facts))


def check_ours(path: Path) -> None:
    """Refuse to replace a file that is no page of ours.

    Raises:
        InputError: there is such a file.
    """
    if path.exists() and MARK not in path.read_bytes()[:BEGINNING]:
        raise InputError(f"{path} was not written by rpnet and is not replaced; move it away, or choose another folder")


def render(template: str, **facts: Any) -> str:
    """Return a page as HTML.

    Args:
        template: name of a file in ``templates/``.
        facts: what the template shows; text in it is escaped.
    """
    return _environment().get_template(template).render(facts)


def asset(name: str) -> bytes:
    """Return a file of ``assets/``: style sheets, scripts and libraries of others (``assets/README.md``)."""
    return (HERE / "assets" / name).read_bytes()


def data_uri(content: bytes, media_type: str) -> str:
    """Return content as a URI that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "words": words}
    environment.globals |= {
        "inlined": lambda name: Markup(asset(name).decode("utf-8")),
        "version": __version__,
        "verdict_words": VERDICT_WORDS,
        "verdict_signs": VERDICT_SIGNS,
    }
    return environment


def number(value: Any, digits: int = 4) -> str:
    """Return a number with a few significant digits; other values as text, None as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def words(name: str) -> str:
    """Return a key of a report as words."""
    return name.replace("_", " ")
