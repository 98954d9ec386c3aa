"""Fit the score that judges registrations to an engine set, from cases whose outcome is known.

Each case is a registration with its figures (`runtime.registration.quality.figures`) and its Dice as a share of the
sound pair's. The score is a logistic model. Which figures count is chosen with a penalty on the sum of their weights'
sizes (L1), which leaves a handful; their weights are then fitted with one on the sum of their squares. Sound and failed
cases count as much as each other, whatever their numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.backends.engine_set import MANIFEST, load_engine_set, manifest_text
from runtime.backends.verdict_limits import CONSERVATIVE, KEY, MEANINGS, SMALLEST, Score, Term, VerdictLimits
from runtime.errors import InputError, first_line
from runtime.host.files.csv_lines import by_column, read_csv
from runtime.host.files.output_path import writing
from runtime.host.files.whole_files import write_text
from runtime.registration.quality.figures import Figures
from runtime.registration.quality.verdict import FAILED, LOOK, OK, judge

SOUND, BAD = 0.95, 0.8  # shares of the sound pair's Dice from which a case is sound, and below which it failed
FEWEST = 20  # cases of either kind that a fit needs
FEWER, SMALLER = 0.2, 1.0  # inverse strengths of the two penalties; larger values keep more figures, larger weights
LOOK_FROM, FAILED_FROM = 0.0, 1.0  # scores: as likely failed as sound, and e times likelier
# Figures whose ratios count, not their differences.
LOGARITHMIC = (
    *("sd_log_jacobian", "sd_log_volume", "folded_share", "flow_mm", "flow_high_mm", "unlike_share"),
    *("fixed_size", "moving_size", "fixed_fine", "moving_fine", "volume_factor", "stretch"),
)
# Unusual on either side, so that no weight fits: left to the limits of single figures.
TWO_SIDED = ("volume_factor", "unseen_share", "fixed_saturated", "moving_saturated")


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
    """Fit the score to cases.

    Args:
        cases: those to fit on; refused ones do not count, nor those between sound and failed.
        without: figures that are left out.

    Raises:
        InputError: too few sound or failed cases.
    """
    run = [case for case in cases if case.figures is not None and (case.sound or case.bad)]
    failed = np.array([case.bad for case in run], bool)
    if min(failed.sum(), (~failed).sum()) < FEWEST:
        raise InputError(
            f"--cases: got {(~failed).sum()} sound and {failed.sum()} failed cases, expected {FEWEST} of each at least"
        )
    figures = [figure for figure in MEANINGS if figure not in {*without, *TWO_SIDED}]
    columns = {figure: _column(figure, run) for figure in figures}
    # A figure that most cases lack, or that is the same in all, tells nothing.
    figures = [
        figure
        for figure, (values, known) in columns.items()
        if known[~failed].mean() > 0.5 and np.ptp(values[known]) > 0
    ]
    centres = {figure: float(np.mean(columns[figure][0])) for figure in figures}
    scales = {figure: float(np.std(columns[figure][0])) for figure in figures}
    design = np.stack([(columns[figure][0] - centres[figure]) / scales[figure] for figure in figures], axis=1)
    weights, _ = _logistic(design, failed, FEWER, l1=True)
    chosen = np.flatnonzero(weights)
    weights, bias = _logistic(design[:, chosen], failed, SMALLER)
    terms = []
    for place, weight in zip(chosen, weights, strict=True):
        figure = figures[place]
        sound = [value for case in run if case.sound and np.isfinite(value := getattr(case.figures, figure))]
        numbers = (centres[figure], scales[figure], float(weight), float(np.median(sound)))
        terms.append(Term(figure, figure in LOGARITHMIC, *(float(f"{number:.5g}") for number in numbers)))
    terms.sort(key=lambda term: -abs(term.weight))
    return VerdictLimits(CONSERVATIVE.limits, Score(float(f"{bias:.5g}"), tuple(terms), LOOK_FROM, FAILED_FROM))


def _column(figure: str, cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Return a figure of all cases, its logarithm if its ratios count, and where it is known; elsewhere the median."""
    values = np.array([getattr(case.figures, figure) for case in cases], np.float64)
    known = np.isfinite(values)
    if figure in LOGARITHMIC:
        values = np.log(np.maximum(values, SMALLEST))
    return np.where(known, values, np.median(values[known]) if known.any() else 0.0), known


def _logistic(design: np.ndarray, failed: np.ndarray, strength: float, l1: bool = False) -> tuple[np.ndarray, float]:
    """Fit a logistic model with equal weight of both outcomes; return its weights and its bias."""
    from sklearn.linear_model import LogisticRegression

    solver = "liblinear" if l1 else "lbfgs"
    ratio = {"l1_ratio": 1.0 if l1 else 0.0}
    model = LogisticRegression(
        C=strength, solver=solver, class_weight="balanced", max_iter=10_000, random_state=0, **ratio
    )
    model.fit(design, failed)
    return model.coef_[0], float(model.intercept_[0])


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
    """Return a rule with the facts on the cases it was fitted and tested on."""
    facts = {"fitted": fitted.as_dict(), "tested": None if tested is None else tested.as_dict()}
    return replace(limits, calibration={"sound_from": SOUND, "failed_below": BAD, **facts})


def store(engine_dir: Path, limits: VerdictLimits) -> None:
    """Write a rule into an engine set's manifest, in one atomic step; its graphs stay as they are."""
    engine_set = load_engine_set(engine_dir)
    manifest = {**engine_set.manifest, KEY: limits.as_dict()}
    with writing(f"to {engine_dir}"):
        write_text(engine_set.folder / MANIFEST, manifest_text(manifest))


def calibrate(
    path: Path, engine_dir: Path, tested_half: str | None, invisible: Iterable[str] = (), without: Iterable[str] = ()
) -> VerdictLimits:
    """Fit the score to an engine set on the cases of all halves but one, test them on that one, and store them.

    Args:
        path: records of registrations with this set.
        engine_dir: folder of the set.
        tested_half: the half to test on; None: fit on all cases and test on none.
        invisible: kinds, or kinds and levels, that no image shows and are left out, such as "mirrored left-right".
        without: figures that are left out.

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
    """Return the terms of the score and the counts of its calibration as a few lines."""
    assert limits.score is not None  # they were fitted
    score = limits.score
    lines = [f"{'figure':20} {'weight':>8} {'usual':>9}   (look from {score.look:g}, failed from {score.failed:g})"]
    lines += [f"{term.figure:20} {term.weight:8.2f} {term.usual:9.4g}" for term in score.terms]
    for name in ("fitted", "tested"):
        if counts := limits.calibration.get(name):
            lines.append(
                f"{name}: of {counts['bad']} failed cases {counts['bad_failed']} have the verdict failed, "
                f"{counts['bad_found'] - counts['bad_failed']} look; of {counts['sound']} sound ones "
                f"{counts['sound_failed']} failed, {counts['sound_looked']} look"
            )
    return "\n".join(lines)
