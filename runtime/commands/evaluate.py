"""`evaluate`: scores of schedules, stop rules and engine sets on pairs with labels or landmarks.

Checkpoints are exported by the context's object, `CloneTools`; without it they are refused.
"""

import click

from .terminal import (
    PATH,
    QUIET,
    InSections,
    Numbers,
    SectionOption,
    StageLine,
    exit_code_of_failures,
    one_line_errors,
)
from .transforms import SUFFIXES


def _section(name: str):
    return lambda *names, **settings: click.option(*names, cls=SectionOption, section=name, **settings)


NUMBERS = Numbers(float)
PAIRS, METHODS, ENGINES, OTHER = map(_section, ("Pairs", "Methods", "Engines", "Output"))


class Times(click.ParamType):
    """Whole numbers, comma-separated, or ranges such as 1-10."""

    name = "N[,N-M...]"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        numbers = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdigit() or (dash and not last.isdigit()):
                self.fail(f"got {value!r}, expected whole numbers or ranges such as 1-10 or 1,2,4", param, ctx)
            if dash and int(last) < int(first):
                self.fail(f"got {value!r}, but {part.strip()} is empty; write {last}-{first}", param, ctx)
            numbers += range(int(first), int(last or first) + 1)
        return tuple(dict.fromkeys(numbers))


@click.command(cls=InSections)
@PAIRS("--pairs", type=PATH, help="CSV: fixed, moving, fixed_labels, moving_labels, ... (docs/guide/evaluate.md).")
@PAIRS("--fixed", type=PATH, help="One pair instead: the target scan.")
@PAIRS("--moving", type=PATH, help="Its moving scan.")
@PAIRS("--fixed-labels", type=PATH, help="Label map in the fixed scan's space.")
@PAIRS("--moving-labels", type=PATH, help="Label map in the moving scan's space.")
@PAIRS("--fixed-landmarks", type=PATH, help="Points: CSV of r,a,s or l,p,s (mm) or i,j,k; .mrk.json; .fcsv.")
@PAIRS("--moving-landmarks", type=PATH, help="The same points in the moving scan, in the same order.")
@PAIRS("--points-in", type=click.Choice(["ras", "lps", "voxels"]), help="Frame of landmark columns x,y,z.")
@PAIRS(
    "--transform",
    "-t",
    "links",
    multiple=True,
    metavar="FILE[,inverse]",
    help="Another tool's transform, scored as well; a chain from fixed to moving, as for `apply`.",
)
@PAIRS(
    "--convention",
    type=click.Choice(["auto", *SUFFIXES]),
    help="Convention of --transform files that do not state it: fields without an intent, FLIRT matrices (fsl).  "
    "[default: auto]",
)
@PAIRS("--label-ids", metavar="N[,N...]", help="Labels to score.  [default: in both maps with 50 voxels or more]")
@METHODS(
    "--schedule",
    "schedules",
    multiple=True,
    metavar="SCHEDULE",
    help="As for `register`; may be repeated. t stands for each of --times: t,1,1,1 or cascade:t.  "
    "[default: 1,1,1,1 and iterstop]",
)
@METHODS("--times", type=Times(), default="1-10", show_default=True, help="Values of t.")
@METHODS("--delta", "deltas", type=NUMBERS, default=(), metavar="D[,D...]", help="Thresholds of stop rules.")
@METHODS("--stability", "stabilities", type=NUMBERS, default=(), metavar="S[,S...]", help="Thresholds of tci.")
@METHODS("--on-stop", "on_stops", multiple=True, type=click.Choice(["keep", "revert"]), help="For iterstop.")
@METHODS(
    "--similarity",
    "similarities",
    multiple=True,
    type=click.Choice(["ncc", "lncc", "mse"]),
    help="Similarity used by stop rules; may be repeated.",
)
@METHODS("--max-iterations", type=Numbers(int, 1, 4), metavar="N[,N,N,N]", help="Stop rules' limit per level.")
@METHODS(
    "--smooth",
    "smooths",
    type=NUMBERS,
    default=(),
    metavar="SIGMA[,SIGMA...]",
    help="Smoothings as for `register`, each with every schedule; 0: none.  [default: 0]",
)
@METHODS("--paper", is_flag=True, help="All of the paper's Tables 1 and 3 and Figure 5, and every stop rule.")
@ENGINES("--engine-dir", "engine_dirs", type=PATH, multiple=True, help="May be repeated.  [default: the shipped one]")
@ENGINES("--checkpoint", "checkpoints", type=PATH, multiple=True, help="Exported first; may be repeated (needs torch).")
@ENGINES("--affine", default="auto", show_default=True, help="As for `register`, the same for every pair.")
@ENGINES("--window", type=Numbers(float, 2), metavar="LOW,HIGH", help="Intensities mapped to 0..1, for CT.")
@ENGINES("--backend", default="auto", show_default=True, help="As for `register`.")
@ENGINES("--precision", default="auto", show_default=True, help="As for `register`.")
@ENGINES("--threads", type=click.IntRange(min=1), help="CPU threads of engines and kernels.  [default: all cores]")
@OTHER("--output", type=PATH, required=True, help="Folder for the results; run again to continue.")
@QUIET
@click.pass_obj
@one_line_errors
def evaluate(tools, pairs, output, links, label_ids, engine_dirs, checkpoints, quiet, **given) -> None:
    """Score registrations by labels, landmarks, folds and similarity, before and after.

    Every pair is read, aligned and encoded once for all schedules, and iterations that schedules share are computed
    once; the reported seconds are those of each schedule alone. Writes index.html (everything, for a browser),
    scores.json, scores.csv, labels.csv, table.md, boxes.png, curves.png, deltas.png and pairs/ (a record each).
    Earlier results are kept if files, options and engines have not changed; failures are reported, and the other pairs
    are still scored.
    """
    from ..backends.engines import SHIPPED
    from ..workflows.evaluation.methods import Choices
    from ..workflows.evaluation.options import EvaluateOptions
    from ..workflows.evaluation.pair_list import parse_label_ids
    from ..workflows.evaluation.results.tables import table
    from ..workflows.evaluation.run import evaluate as run

    names = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_landmarks", "moving_landmarks")
    single = {name: given.pop(name) for name in names}
    convention = given.pop("convention")
    swept = ("schedules", "deltas", "stabilities", "on_stops", "similarities", "smooths")
    choices = Choices(**{name: given.pop(name) for name in (*swept, "max_iterations", "times", "paper")})
    options = EvaluateOptions(
        pairs=_pairs(pairs, single, links, convention),
        output=output,
        choices=choices,
        engine_dirs=engine_dirs or (() if checkpoints else (SHIPPED,)),
        checkpoints=checkpoints,
        label_ids=parse_label_ids(label_ids, "--label-ids") if label_ids else None,
        **given,
    )
    with StageLine(quiet).shown() as stages:
        result = run(options, stages, tools and tools.export)
    for name, error in result.failures:
        click.echo(f"Error: {name}: {error}", err=True)
    if not quiet:
        for name, line in result.warnings:
            click.echo(f"warning: {name}: {line}", err=True)
        click.echo(f"{table(result)}\nwrote {result.folder}/: {', '.join(result.to_read)} first")
    if result.failures:
        raise click.exceptions.Exit(exit_code_of_failures(result.only_scarcity))


def _pairs(path, single, links, convention):
    """Return the pairs of the CSV, or the single pair given by the other options."""
    from ..transforms.chain import Link
    from ..workflows.evaluation.pair_list import EvaluationPair, pair_name, read_pairs

    if (path is None) == (single["fixed"] is None) or (single["fixed"] is None) != (single["moving"] is None):
        raise click.UsageError("give either --pairs, or --fixed and --moving")
    if path is not None:
        if links or convention or any(single.values()):
            raise click.UsageError("with --pairs, labels, landmarks, transforms and conventions are columns of the CSV")
        return read_pairs(path)
    if convention and not links:
        raise click.UsageError("--convention is for --transform")
    name = pair_name(single["fixed"], single["moving"])
    return (EvaluationPair(name, **single, transform=tuple(map(Link.parse, links)), convention=convention or "auto"),)
