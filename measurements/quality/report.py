"""Print how well verdicts agree with outcomes: by half, by kind of case, and as a ROC figure.

    python -m measurements.quality.report --cases runs/cases.csv --figure docs/images/verdict-roc.png

Verdicts follow from the rule of the engine set.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from export.calibrate import BAD, SOUND, Case, read_cases
from runtime.backends.engine_set import load_engine_set
from runtime.backends.verdict_limits import ABOVE, MEANINGS, VerdictLimits
from runtime.registration.quality.verdict import FAILED, LOOK, OK

INVISIBLE = "mirrored"
COLUMNS = ("cases", "n", "refused", "sound", "ok", "look", "failed", "between", "wrong", "ok", "look", "failed")


def row(name: str, cases: list[Case], limits: VerdictLimits) -> str:
    """Return a line of the table: how many of sound and of wrong results have which verdict."""
    cells = [name, len(cases), sum(case.figures is None for case in cases)]
    for chosen in ([case for case in cases if case.sound], [case for case in cases if case.bad]):
        verdicts = [case.verdict(limits) for case in chosen]
        cells += [len(chosen), *(verdicts.count(word) for word in (OK, LOOK, FAILED))]
        if len(cells) == 7:
            cells.append(sum(not case.sound and not case.bad for case in cases))
    return "| " + " | ".join(map(str, cells)) + " |"


def severity(case: Case, limits: VerdictLimits) -> float:
    """Return how much speaks against a case: its score, or the excess over a limit, whichever is larger."""
    if case.figures is None:
        return np.inf
    values = ((limit, getattr(case.figures, limit.figure)) for limit in limits.limits)
    found = [limit.excess(value) for limit, value in values if not np.isnan(value)]
    if limits.score is not None:
        return max([0.0, *found]) + limits.score.bias + sum(limits.score.parts(case.figures.as_dict()).values())
    return max(found, default=-np.inf)


def alone(figure: str, cases: list[Case]) -> list[tuple[float, bool]]:
    """Return the cases' values of one figure, larger where it speaks against them, and whether they are wrong."""
    sign = 1 if MEANINGS[figure][0] == ABOVE else -1
    values = ((sign * getattr(case.figures, figure), case.bad) for case in cases)
    return [(value if np.isfinite(value) else -np.inf, wrong) for value, wrong in values]


def roc(scores: Iterable[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates for all thresholds, from (score, wrong) of each case."""
    ordered = sorted(scores, key=lambda pair: -pair[0])
    wrong = np.array([pair[1] for pair in ordered])
    return np.cumsum(~wrong) / max((~wrong).sum(), 1), np.cumsum(wrong) / max(wrong.sum(), 1)


def draw(path: Path, cases: list[Case], limits: VerdictLimits) -> None:
    """Draw the ROC curves of the verdict and of its figures alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    decided = [case for case in cases if (case.sound or case.bad) and case.figures is not None]
    figure, axes = plt.subplots(figsize=(7, 5.2), dpi=110)
    curves = {"verdict": [(severity(case, limits), case.bad) for case in decided]}
    if limits.score is not None:
        curves |= {term.figure: alone(term.figure, decided) for term in limits.score.terms}
    for name, scores in curves.items():
        false, true = roc(scores)
        axes.plot(false, true, label=name, linewidth=2.4 if name == "verdict" else 1.1, drawstyle="steps-post")
    axes.set(xlim=(0, 0.2), ylim=(0.5, 1.01), xlabel="share of sound results", ylabel="share of wrong results found")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--cases", "path", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--engine-dir", type=click.Path(path_type=Path), default="engines", show_default=True)
@click.option("--test-half", default="b", show_default=True)
@click.option("--figure", type=click.Path(path_type=Path), help="Where to draw the ROC curves of the test half.")
def main(path: Path, engine_dir: Path, test_half: str, figure: Path | None) -> None:
    limits = load_engine_set(engine_dir).verdict_limits
    every = read_cases(path)
    cases = [case for case in every if case.kind != INVISIBLE]
    click.echo(f"sound: at least {SOUND} of the sound pair's Dice; wrong: below {BAD}\n")
    click.echo(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for half in sorted({case.half for case in cases}):
        name = f"half {half}, {'tested' if half == test_half else 'fitted'}"
        click.echo(row(name, [case for case in cases if case.half == half], limits))
    kinds = defaultdict(list)
    for case in cases:
        kinds[case.kind].append(case)
    for kind, members in sorted(kinds.items()):
        click.echo(row(kind, members, limits))
    click.echo(row(f"{INVISIBLE} (not counted above)", [case for case in every if case.kind == INVISIBLE], limits))
    if limits.score is not None:
        click.echo("\n| figure | weight | centre | scale | usually |\n| --- | --- | --- | --- | --- |")
        for term in limits.score.terms:
            name = f"log `{term.figure}`" if term.logarithm else f"`{term.figure}`"
            click.echo(f"| {name} | {term.weight:+.2f} | {term.centre:.4g} | {term.scale:.4g} | {term.usual:.4g} |")
        click.echo(f"| bias | {limits.score.bias:+.2f} | | | |")
    click.echo("")
    for case in cases:
        given = case.verdict(limits)
        if (case.sound and given != OK) or (case.bad and given == OK):
            click.echo(f"{case.name}: ratio {case.ratio:.2f}, {given}")
    if figure is not None:
        draw(figure, [case for case in cases if case.half == test_half], limits)


if __name__ == "__main__":
    main()
