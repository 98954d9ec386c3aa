"""Refuses a chain of transforms, or one link of it, that is the wrong way round, as far as the files' cards tell.

A chain is listed from the reference to the scan: each link begins where the one before it ends, the first in the
reference's space, the last ends in the scan's. Where two sides meet they are compared: the same file, the same grid, or
neither. Another arrangement that fits better than the given one, where that does not fit, is what was meant, unless the
scan lies less well in its end. A grid that fits nowhere proves nothing: any grid in the reference's space may be asked
for. Nor does one of two files that are not the same, where no reference says the same thing.
"""

import itertools
from collections.abc import Iterator, Sequence

from ..errors import InputError
from .link import ReadLink
from .spaces import Space, likeness

SURER = 0.5  # counts more than on a reference: the scan must lie in the chain's end, a reference may be any grid


class DirectionError(InputError):
    """A chain that is the wrong way round.

    Attributes:
        reason: what is wrong, without the remedy.
        better: the links that fit.
    """

    def __init__(self, reason: str, better: Sequence[ReadLink]) -> None:
        super().__init__(f"{reason}; use {_options(better)}")
        self.reason, self.better = reason, tuple(better)


def check_direction(links: Sequence[ReadLink], scan: Space | None, reference: Space | None) -> None:
    """Compare the sides of a chain's links with each other, the reference and the scan.

    Args:
        links: from the reference to the scan.
        scan: what the chain is applied to; None: not known.
        reference: where the result is wanted; None: not known.

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
    """Whether another arrangement may have been meant, as far as the scan tells.

    It has to lie in the end at least as well. Where it lies in the given end, and the links fit, only an arrangement
    with another end can be: the reference may be any grid.
    """
    now, then = likeness(links[-1].end, scan), likeness(other[-1].end, scan)
    inner = [(one.end, two.start) for one, two in itertools.pairwise(links)]
    joined = all(_fits(*pair) for pair in inner if None not in pair)
    return then >= now and not (now > 0 and joined and other[-1].end is links[-1].end)


def _score(links: Sequence[ReadLink], scan: Space | None, reference: Space | None) -> tuple[float, bool]:
    """How well the sides that meet fit, and whether all those that are known do."""
    first, last = links[0].start, links[-1].end
    meetings = [(reference, first), *((one.end, two.start) for one, two in itertools.pairwise(links)), (last, scan)]
    known = [pair for pair in meetings if None not in pair]
    told = meetings if reference or _fits(last, scan) else meetings[:-1]
    certain = likeness(last, scan) == 2
    return sum(likeness(*pair) for pair in told) + SURER * certain, all(_fits(*pair) for pair in known)


def _fits(one: Space | None, other: Space | None) -> bool:
    """Whether two sides are the same as far as is known: on one grid, two hashes may still differ."""
    level = likeness(one, other)
    return level == 2 or (level == 1 and None in (one.sha256, other.sha256))


def _arrangements(links: Sequence[ReadLink]) -> Iterator[list[ReadLink]]:
    """What may have been meant: one link the other way round, or the whole chain."""
    for wrong in range(len(links)):
        yield [link.turned if index == wrong else link for index, link in enumerate(links)]
    yield [link.turned for link in reversed(links)]


def _reason(links: Sequence[ReadLink], better: Sequence[ReadLink]) -> str:
    turned = [
        link
        for link, other in zip(links, better, strict=True)
        if link.file is other.file and link.inverse != other.inverse
    ]
    wrong = turned if len(turned) == 1 else links
    return (
        f"{_options(wrong)} leads from {_name(wrong[0].start)} to {_name(wrong[-1].end)}, the wrong way round for this "
        "reference and scan"
    )


def _options(links: Sequence[ReadLink]) -> str:
    return " ".join(f"-t {link}" for link in links)


def _name(space: Space | None) -> str:
    if space is None:
        return "an unknown image"
    return space.name or "a grid of " + " x ".join(map(str, space.grid.shape))
