"""`register`: one or several moving scans to a fixed one."""

import click

from .registration_options import ENGINES, OUTPUTS, REGISTRATION, outputs_of, with_options
from .terminal import (
    ENGINE_DIR,
    IMPLAUSIBLE,
    OVERWRITE,
    PATH,
    QUIET,
    StageLine,
    exit_code_of_failures,
    one_line_errors,
)


@click.command()
@ENGINE_DIR
@click.option("--fixed", type=PATH, required=True, help="Target scan (.nii, .nii.gz, .mgh, .mgz).")
@click.option("--moving", type=PATH, required=True, multiple=True, help="Scan to register to it; may be repeated.")
@click.option("--output", type=PATH, required=True, help="Folder for the results; several scans get subfolders.")
@click.option(
    "--moving-labels",
    type=PATH,
    multiple=True,
    help="Label map of the moving scan, warped by nearest neighbour. With several scans: one for each, in order.",
)
@click.option("--fixed-mask", type=PATH, help="Mask of the fixed scan: voxels to use; enclosed holes are lesions.")
@click.option(
    "--moving-mask", type=PATH, multiple=True, help="Mask of the moving scan; with several, one for each, in order."
)
@with_options(REGISTRATION, ENGINES)
@with_options(OUTPUTS)
@click.option("--check", is_flag=True, help="Only examine the scans and this machine, as `doctor` does; write nothing.")
@click.option("--strict", is_flag=True, help="Exit code 3 if the verdict on a registration is `failed`.")
@QUIET
@OVERWRITE
@one_line_errors
def register(
    engine_dir,
    fixed,
    moving,
    output,
    moving_labels,
    fixed_mask,
    moving_mask,
    backend,
    precision,
    threads,
    write,
    outputs,
    compact,
    forward_only,
    report,
    report_full,
    check,
    strict,
    quiet,
    overwrite,
    **options,
) -> None:
    """Register one or several moving scans to a fixed one, in both directions.

    Writes warped.nii.gz (moving on the fixed grid), warped_fixed.nii.gz (fixed on the moving grid), warp.nii.gz and
    inverse_warp.nii.gz (the whole displacements, for ANTs and ITK; see --write), affine.txt, jacobian.nii.gz,
    warped_labels.nii.gz if labels are given, report.json, report.html (everything at a glance, for a browser) and
    preview.png; --outputs selects among them, and --compact makes them small. Transforms are read back and compared.
    The first line printed is the verdict: ok, look (at report.html) or failed, and why; see --strict.
    Options that are not given follow the engine set. Several moving scans share the work on the fixed one; an error in
    one is reported, and the others are still registered; index.html lists them all, the worst first.
    """
    from ..errors import is_scarcity
    from ..pages.page import check_ours
    from ..registration.batch.files import EngineChoice, Outcome, plan_tasks, register_files
    from ..registration.options import Options
    from ..registration.output.folder import PAGE, PREVIEW, REPORT
    from ..registration.output.index import INDEX, results_in, write_index
    from ..registration.quality.verdict import FAILED

    tasks = plan_tasks(output, moving, moving_labels, moving_mask)
    outputs = outputs_of(write, outputs, compact, forward_only, report, report_full)
    engines = EngineChoice(engine_dir, backend, threads, precision)
    if check:
        from .doctor import print_checkup

        for number, task in enumerate(tasks):
            if number:
                click.echo()
            print_checkup((fixed, task.moving), engines, Options(**options), (fixed_mask, task.mask))
        return
    if outputs.wants("report") and len(tasks) > 1:
        check_ours(output / INDEX)
    shown = {"report": PAGE, "preview": PREVIEW}
    first = next((name for kind, name in shown.items() if outputs.wants(kind)), REPORT)
    outcomes: list[Outcome] = []
    with StageLine(quiet).shown() as stages:
        how = (engines, Options(**options), overwrite, stages, outputs, fixed_mask)
        for outcome in register_files(fixed, tasks, *how):
            outcomes.append(outcome)
            _print_outcome(outcome, stages, quiet, first, len(tasks) == 1)
    if outputs.wants("report") and len(tasks) > 1:
        failures = {one.task.folder.name: str(one.error) for one in outcomes if one.error is not None}
        path = write_index(output, results_in(output), failures)
        if not quiet:
            click.echo(f"wrote {path}: all of them, the worst first")
    if errors := [outcome.error for outcome in outcomes if outcome.error is not None]:
        raise click.exceptions.Exit(exit_code_of_failures(all(map(is_scarcity, errors))))
    if strict and any(outcome.verdict == FAILED for outcome in outcomes):
        raise click.exceptions.Exit(IMPLAUSIBLE)


def _print_outcome(outcome, stages: StageLine, quiet: bool, first: str, alone: bool) -> None:
    """Print a registration's summary or its error; the error of a single registration is raised as the command's."""
    if outcome.error and alone:
        raise outcome.error
    if outcome.error:
        stages.print(f"Error: {outcome.task.moving}: {outcome.error}", error=True)
    elif not quiet:
        name = "" if alone else f"moving      {outcome.task.moving}\n"
        text = f"{name}{outcome.summary}\nwrote {outcome.task.folder}/: look at {first} first"
        stages.print(text if alone else f"{text}\n")
