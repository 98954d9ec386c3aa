"""Direction check: reject a chain of transforms, or a link of it, whose direction contradicts the files' metadata.

A chain is listed from the reference to the scan: the first link starts in the reference's space, each further link
starts where the one before it ends, and the last ends in the scan's space. Sides that meet are compared: same file,
same grid, or neither. If the given arrangement does not fit and another one fits better, the other one was meant,
unless the scan fits its end less well. A grid that fits nowhere proves nothing, since the result may be wanted on any
grid in the reference's space. Nor do two different files on one grid, unless a reference confirms it.
"""

import itertools
from collections.abc import Iterator, Sequence

from ..errors import InputError
from .link import ReadLink
from .spaces import Space, match_level

HASH_WEIGHT = 0.5  # extra weight of the scan's hash: the scan must lie in the chain's end, a reference may be any grid


class DirectionError(InputError):
    """A chain in the wrong direction.

    Attributes:
        reason: the message without the remedy.
        better: the links as they should be given.
    """

    def __init__(self, reason: str, better: Sequence[ReadLink]) -> None:
        super().__init__(f"{reason}; use {_options(better)}")
        self.reason, self.better = reason, tuple(better)


def check_direction(links: Sequence[ReadLink], scan: Space | None, reference: Space | None) -> None:
    """Compare the sides of a chain's links with each other, the reference and the scan.

    Args:
        links: from the reference to the scan.
        scan: side of the image that the chain is applied to; None: not known.
        reference: side of the image on whose grid the result is wanted; None: not known.

    Raises:
        DirectionError: with the arrangement that fits.
    """
    if not links:
        return
    given, fits = _score(links, scan, reference)
    if fits:
        return
    others = [other for other in _arrangements(links) if _likely(other, links, scan)]
    scores = [_score(other, scan, reference)[0] for other in others]
    found, better = max(zip(scores, others, strict=True), key=lambda pair: pair[0], default=(given, links))
    if found > given:
        raise DirectionError(_reason(links, better), better)


def _likely(other: Sequence[ReadLink], links: Sequence[ReadLink], scan: Space | None) -> bool:
    """Return True if another arrangement may have been meant, judged by the scan.

    The scan has to fit the other arrangement's end at least as well. If it fits the given end, and the links fit each
    other, only an arrangement with another end may have been meant: the reference may be any grid.
    """
    now, then = match_level(links[-1].end, scan), match_level(other[-1].end, scan)
    inner = [(one.end, two.start) for one, two in itertools.pairwise(links)]
    joined = all(_fits(*pair) for pair in inner if None not in pair)
    return then >= now and not (now > 0 and joined and other[-1].end is links[-1].end)


def _score(links: Sequence[ReadLink], scan: Space | None, reference: Space | None) -> tuple[float, bool]:
    """Return the score of the sides that meet, and True if all known ones fit."""
    first, last = links[0].start, links[-1].end
    junctions = [(reference, first), *((one.end, two.start) for one, two in itertools.pairwise(links)), (last, scan)]
    known = [pair for pair in junctions if None not in pair]
    counted = junctions if reference or _fits(last, scan) else junctions[:-1]
    certain = match_level(last, scan) == 2
    return sum(match_level(*pair) for pair in counted) + HASH_WEIGHT * certain, all(_fits(*pair) for pair in known)


def _fits(one: Space | None, other: Space | None) -> bool:
    """Return True if two sides are the same as far as is known: the grids agree, and no two known hashes differ."""
    if one is None or other is None:
        return False
    level = match_level(one, other)
    return level == 2 or (level == 1 and None in (one.sha256, other.sha256))


def _arrangements(links: Sequence[ReadLink]) -> Iterator[list[ReadLink]]:
    """Yield the arrangements that may have been meant: each single link inverted, then the whole chain."""
    for wrong in range(len(links)):
        yield [link.inverted if index == wrong else link for index, link in enumerate(links)]
    yield [link.inverted for link in reversed(links)]


def _reason(links: Sequence[ReadLink], better: Sequence[ReadLink]) -> str:
    inverted = [
        link
        for link, other in zip(links, better, strict=True)
        if link.file is other.file and link.inverse != other.inverse
    ]
    wrong = inverted if len(inverted) == 1 else links
    return (
        f"{_options(wrong)} maps {_name(wrong[0].start)} to {_name(wrong[-1].end)}, the wrong direction for this "
        "reference and scan"
    )


def _options(links: Sequence[ReadLink]) -> str:
    return " ".join(f"-t {link}" for link in links)


def _name(space: Space | None) -> str:
    if space is None:
        return "an unknown image"
    return space.name or "a grid of " + " x ".join(map(str, space.grid.shape))
