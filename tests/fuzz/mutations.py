"""Files with a few bytes wrong, for Hypothesis: what damage, other tools and bad luck make of sound ones.

A mutation is a list of edits of a sound file's bytes. Edits of known fields put in numbers that headers have when they
are wrong; edits anywhere flip, cut, repeat and overwrite.
"""

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("RPNET_FUZZ", "0"))  # of each test; 0: few, as in a run of all tests
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-20,
    1e-6,
    1e5,
    1e10,
    1e20,
    3e38,
    -3e38,
    float("nan"),
    float("inf"),
    -float("inf"),
)
INTEGERS = (0, 1, -1, 2, 3, 7, 8, 127, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63))


def fuzzing(usual: int) -> settings:
    """How many examples a test tries: `usual`, or as many as are asked for by hand; the same ones in every run."""
    return settings(max_examples=EXAMPLES or usual, derandomize=not EXAMPLES, deadline=None, database=None)


@dataclass(frozen=True)
class Field:
    """A number in a header: where it stands and how (struct's letter)."""

    place: int
    form: str


def fields(*spans: tuple[int, str]) -> tuple[Field, ...]:
    """The single numbers of spans such as (40, "8h")."""
    found = []
    for place, form in spans:
        order, count, letter = form[0], int(form[1:-1] or 1), form[-1]
        size = struct.calcsize(order + letter)
        found += [Field(place + n * size, order + letter) for n in range(count)]
    return tuple(found)


NIFTI_1 = fields(
    *((0, "<1i"), (40, "<8h"), (56, "<3f"), (68, "<3h"), (76, "<8f"), (108, "<1f"), (112, "<2f"), (123, "<1B")),
    *((252, "<2h"), (256, "<6f"), (280, "<12f")),
)
NIFTI_2 = fields(
    *((12, "<2h"), (16, "<8q"), (80, "<3d"), (104, "<8d"), (168, "<1q"), (176, "<2d"), (344, "<2i"), (352, "<6d")),
    *((400, "<12d"), (500, "<1i"), (504, "<1i")),
)
MGH = fields((0, ">7i"), (28, ">1h"), (30, ">15f"))


def _numbers(field: Field) -> st.SearchStrategy[bytes]:
    """The bytes of a number that fits a field."""
    letter = field.form[-1]
    if letter in "fd":
        values = st.sampled_from(FLOATS) | st.floats(width=32 if letter == "f" else 64)
    else:
        bits = 8 * struct.calcsize(field.form)
        low, high = (0, 2**bits - 1) if letter.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        values = st.sampled_from([n for n in INTEGERS if low <= n <= high]) | st.integers(low, high)
    return values.map(lambda value: struct.pack(field.form, value))


@st.composite
def in_fields(draw: st.DrawFn, content: bytes, known: tuple[Field, ...]) -> bytes:
    """One to four fields of a header with other numbers."""
    result = bytearray(content)
    for field in draw(st.lists(st.sampled_from(known), min_size=1, max_size=4)):
        number = draw(_numbers(field))
        result[field.place : field.place + len(number)] = number
    return bytes(result)


@st.composite
def anywhere(draw: st.DrawFn, content: bytes, within: int | None = None) -> bytes:
    """Bytes flipped, overwritten, cut out, repeated or cut off, one to four times, among the first `within`."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(min(len(result), within or len(result)) - 1, 0)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(("flip", "write", "cut", "repeat", "end"))):
            case "flip" if result:
                result[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                result[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "cut":
                del result[at : at + length]
            case "repeat":
                result[at:at] = result[at : at + length]
            case "end":
                del result[at:]
    return bytes(result)


@st.composite
def texts(draw: st.DrawFn, content: str) -> bytes:
    """Words of a text file replaced by others, lines left out or doubled, or bytes changed anywhere."""
    if draw(st.booleans()):
        return draw(anywhere(content.encode()))
    lines = content.split("\n")
    odd = ("", "nan", "inf", "-1e999", "1e308", "-5", "0", "1e-320", "99999999999999999999", "ä", "\0", ";", ",", '"')
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(odd) | st.text(max_size=8))
        lines[at : at + 1] = draw(st.sampled_from(([" ".join(words)], [" ".join(words)] * 2, [])))
        lines = lines or [""]
    return "\n".join(lines).encode(errors="replace")


def written(path: Path, content: bytes, packed: bool) -> Path:
    """A file of these bytes, compressed or not."""
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    return path
