"""Fit the limits of plausible registrations to an engine set, from cases whose outcome is known.

Each case is a registration with its figures (`runtime.registration.quality.figures`) and its Dice as a share of the
sound pair's. Limits are chosen one figure at a time: the one that finds most of the failed cases that
fewer than two earlier ones find. They lie beyond all sound cases, part of the way to where failed ones lie.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.backends.engine_set import MANIFEST, load_engine_set, manifest_text
from runtime.backends.verdict_limits import ABOVE, BOTH, KEY, MEANINGS, Limit, VerdictLimits
from runtime.errors import InputError, first_line
from runtime.host.files.csv_lines import by_column, read_csv
from runtime.host.files.output_path import writing
from runtime.host.files.whole_files import write_text
from runtime.registration.quality.figures import Figures
from runtime.registration.quality.verdict import FAILED, LOOK, OK, judge

SOUND, BAD = 0.95, 0.8  # shares of the sound pair's Dice from which a case is sound, and below which it failed
FEWEST = 20  # cases of either kind that a fit needs
# Limits of look and failed: shares of the way from the sound cases' extreme to the median of the failed ones beyond it.
BETWEEN = (0.1, 0.3)
TIMES = 2  # figures that have to find a failed case, so that the verdict does not hang on one
LOGARITHMIC = ("volume_factor", "stretch", "fixed_size", "moving_size", "flow_mm", "flow_high_mm")  # figures of ratios


@dataclass(frozen=True, eq=False)
class Case:
    """A registration with a known outcome.

    Attributes:
        name: of the record.
        kind, level: what was changed and how much.
        half: the half of the subjects it belongs to.
        ratio: its Dice as a share of the sound pair's.
        figures: its figures; None: it was refused with an error.
    """

    name: str
    kind: str
    level: str
    half: str
    ratio: float
    figures: Figures | None

    @property
    def sound(self) -> bool:
        return self.ratio >= SOUND

    @property
    def bad(self) -> bool:
        return self.ratio < BAD

    def verdict(self, limits: VerdictLimits) -> str:
        """Return the verdict that limits give; a refused case counts as failed."""
        return FAILED if self.figures is None else judge(self.figures, limits).verdict


@dataclass(frozen=True)
class Table:
    """Verdicts on cases, counted.

    Attributes:
        sound, bad: numbers of cases.
        sound_failed, sound_looked: sound cases with the verdict "failed" and "look".
        bad_failed, bad_found: failed cases with the verdict "failed", and with "look" or "failed" or an error.
    """

    sound: int
    bad: int
    sound_failed: int
    sound_looked: int
    bad_failed: int
    bad_found: int

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))


def read_cases(path: Path) -> list[Case]:
    """Read the records of cases, a CSV file.

    Raises:
        InputError: the file cannot be read, or a record has no figures, or others than this program knows.
    """
    names = tuple(Figures.__dataclass_fields__)
    header, lines = read_csv(path, "--cases", "name, half, kind, level, ratio, refused and one for each figure")
    found = []
    for number, cells in lines:
        if len(cells) < len(header):
            continue  # the unfinished line of a process that was killed
        row = by_column(header, cells)
        try:
            figures = None if row["refused"] else Figures(**{name: float(row[name] or "nan") for name in names})
            ratio = float(row["ratio"])
            found.append(Case(row["name"], row["kind"], row["level"], row["half"], ratio, figures))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--cases: {path}, line {number} has no usable figures ({first_line(error)}), expected those that "
                "measurements.quality writes; make the cases again"
            ) from None
    return found


def fit(cases: Sequence[Case], without: Iterable[str] = ()) -> VerdictLimits:
    """Fit limits to cases.

    Args:
        cases: those to fit on; refused ones do not count.
        without: figures that get no limits.

    Raises:
        InputError: too few sound or failed cases.
    """
    run = [case for case in cases if case.figures is not None]
    sound, bad = [case for case in run if case.sound], [case for case in run if case.bad]
    if min(len(sound), len(bad)) < FEWEST:
        raise InputError(
            f"--cases: got {len(sound)} sound and {len(bad)} failed cases, expected {FEWEST} of each at least"
        )
    candidates = [
        limit
        for figure, (sides, _) in MEANINGS.items()
        if figure not in set(without)
        for side in BOTH
        if side in sides and (limit := _limit(figure, side, sound, bad)) is not None
    ]
    chosen: list[Limit] = []
    found = dict.fromkeys(bad, 0)  # by how many of the chosen limits
    while candidates and (missed := [case for case, times in found.items() if times < TIMES]):
        caught_by = {limit: _caught(limit, missed) for limit in candidates}
        best = max(candidates, key=lambda limit: len(caught_by[limit]))
        if not (caught := caught_by[best]):
            break
        chosen.append(best)
        candidates.remove(best)
        found |= {case: found[case] + 1 for case in caught}
    return VerdictLimits(tuple(chosen))


def _limit(figure: str, side: str, sound: Sequence[Case], bad: Sequence[Case]) -> Limit | None:
    """Return the limits of a figure between what sound cases reach and where failed ones lie.

    Returns:
        None if the figure is missing in most sound cases, or no failed case lies beyond all of them.
    """
    scale = (np.log, np.exp) if figure in LOGARITHMIC else (np.asarray, float)
    sign = 1 if side == ABOVE else -1
    values, failed = (np.array([getattr(case.figures, figure) for case in cases], np.float64) for cases in (sound, bad))
    with np.errstate(divide="ignore", invalid="ignore"):  # what has no logarithm is left out
        values, failed = (sign * scale[0](found) for found in (values, failed))
    values, failed = (found[np.isfinite(found)] for found in (values, failed))
    if len(values) < len(sound) / 2 or not np.any(failed > values.max()):
        return None
    extreme = values.max()
    distance = np.median(failed[failed > extreme]) - extreme
    ends = (scale[1](sign * (extreme + share * distance)) for share in BETWEEN)
    look, worst = (float(f"{end:.4g}") for end in ends)
    return Limit(figure, side, look, worst) if look != worst else None


def _caught(limit: Limit, cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.verdict(VerdictLimits((limit,))) == FAILED]


def tried(cases: Sequence[Case], limits: VerdictLimits) -> Table:
    """Count the verdicts that limits give on cases; a refused case counts as found and failed."""
    sound = [case.verdict(limits) for case in cases if case.sound]
    bad = [case.verdict(limits) for case in cases if case.bad]
    return Table(
        len(sound),
        len(bad),
        sound.count(FAILED),
        sound.count(LOOK),
        bad.count(FAILED),
        len(bad) - bad.count(OK),
    )


def calibrated(limits: VerdictLimits, fitted: Table, tested: Table | None) -> VerdictLimits:
    """Return limits with the facts on the cases they were fitted and tested on."""
    facts = {"fitted": fitted.as_dict(), "tested": None if tested is None else tested.as_dict()}
    return replace(limits, calibration={"sound_from": SOUND, "failed_below": BAD, **facts})


def store(engine_dir: Path, limits: VerdictLimits) -> None:
    """Write limits into an engine set's manifest, in one atomic step; its graphs stay as they are."""
    engine_set = load_engine_set(engine_dir)
    manifest = {**engine_set.manifest, KEY: limits.as_dict()}
    with writing(f"to {engine_dir}"):
        write_text(engine_set.folder / MANIFEST, manifest_text(manifest))


def calibrate(
    path: Path, engine_dir: Path, tested_half: str | None, invisible: Iterable[str] = (), without: Iterable[str] = ()
) -> VerdictLimits:
    """Fit limits to an engine set on the cases of all halves but one, test them on that one, and store them.

    Args:
        path: records of registrations with this set.
        engine_dir: folder of the set.
        tested_half: the half to test on; None: fit on all cases and test on none.
        invisible: kinds, or kinds and levels, that no image shows and are left out, such as "mirrored left-right".
        without: figures that get no limits.

    Raises:
        InputError: records or an engine set that cannot be used, or too few cases.
    """
    load_engine_set(engine_dir)  # raise its errors before any work
    cases = [case for case in read_cases(path) if not {case.kind, f"{case.kind} {case.level}"} & set(invisible)]
    halves = {case.half for case in cases}
    if tested_half is not None and tested_half not in halves:
        raise InputError(
            f"--test-half: got {tested_half!r}, expected one of {', '.join(sorted(halves))}, as in --cases"
        )
    fitted = [case for case in cases if case.half != tested_half]
    tested = [case for case in cases if case.half == tested_half]
    limits = fit(fitted, without)
    limits = calibrated(limits, tried(fitted, limits), tried(tested, limits) if tested else None)
    store(engine_dir, limits)
    return limits


def text_of(limits: VerdictLimits) -> str:
    """Return the limits and the counts of their calibration as a few lines."""
    lines = [f"{'figure':20} {'':6} {'look':>8} {'failed':>8}"]
    lines += [f"{limit.figure:20} {limit.side:6} {limit.look:8.4g} {limit.failed:8.4g}" for limit in limits.limits]
    for name in ("fitted", "tested"):
        if counts := limits.calibration.get(name):
            lines.append(
                f"{name}: of {counts['bad']} failed cases {counts['bad_failed']} have the verdict failed, "
                f"{counts['bad_found'] - counts['bad_failed']} look; of {counts['sound']} sound ones "
                f"{counts['sound_failed']} failed, {counts['sound_looked']} look"
            )
    return "\n".join(lines)
