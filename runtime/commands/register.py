"""`register`: one or several moving scans to a fixed one."""

import click

from .terminal import (
    ENGINE_DIR,
    IMPLAUSIBLE,
    NAN,
    OVERWRITE,
    PATH,
    QUIET,
    Numbers,
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
@click.option(
    "--affine",
    default="auto",
    show_default=True,
    metavar="auto|affine|rigid|none|FILE[,inverse]",
    help="auto: the best of headers, centres of mass, rigid and affine. affine, rigid: the result of these steps. "
    "none: trust the headers. Or a transform, fixed to moving, that `apply` reads (for a field, its best affine fit).",
)
@click.option(
    "--convention", default="auto", show_default=True, help="Convention of a FILE that states none, such as fsl."
)
@click.option(
    "--volume-factor",
    type=Numbers(float, 2),
    default=(0.3, 3.0),
    metavar="LOW,HIGH",
    help="Limits of a plausible affine; wider for children and animals.  [default: 0.3,3]",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt-rtx", "tensorrt", "cuda", "native", "openvino", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="Library that runs the engines; the first three need an NVIDIA GPU and requirements-gpu.txt.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    help="Precision of the engines. auto: fp16 for TensorRT, fp32 otherwise.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of engines and kernels.  [default: all cores]")
@click.option(
    "--schedule",
    default="iterstop",
    show_default=True,
    help="Stop rules iterstop, tci, thrift; fixed iterations a,b,c,d at levels 4,3,2,1 (1,1,1,1 is RP-Net); cascade:t "
    "is RP-Net t times.",
)
@click.option(
    "--delta",
    type=Numbers(float, 1, 4),
    metavar="D[,D,D,D]",
    help="Smallest improvement, one value or four (levels 4,3,2,1).  [default: the engine set's, 0.005 for ncc]",
)
@click.option(
    "--stability",
    type=Numbers(float, 1, 4),
    metavar="S[,S,S,S]",
    help="For tci: largest change of the similarity that counts as stable.  [default: 0.02 for ncc]",
)
@click.option(
    "--on-stop",
    type=click.Choice(["keep", "revert"]),
    help="For iterstop: keep a candidate that fails the test (released code), or undo it.  [default: keep]",
)
@click.option("--similarity", type=click.Choice(["ncc", "lncc", "mse"]), help="Watched by stop rules.  [default: ncc]")
@click.option("--max-iterations", type=Numbers(int, 1, 4), metavar="N[,N,N,N]", help="Limit per level.  [default: 10]")
@click.option(
    "--smooth",
    type=float,
    default=0.0,
    metavar="SIGMA",
    help="Smooth every residual flow, SIGMA in voxels, where the fixed image has no edges: fewer folds; 1.5 is "
    "recommended.  [default: 0, none]",
)
@click.option(
    "--window", type=Numbers(float, 2), metavar="LOW,HIGH", help="Intensities mapped to 0..1, for CT, e.g. -200,300."
)
@NAN
@click.option(
    "--write",
    default="itk",
    show_default=True,
    metavar="NAME[,NAME...]",
    help="Conventions of the transform files: itk (ANTs, SimpleITK), freesurfer, fsl, learn2reg, h5 (ITK composite).",
)
@click.option(
    "--outputs",
    metavar="NAME[,NAME...]",
    help="Files to write: warped, labels, warped_fixed, warp, inverse, affine, jacobian, preview, report (the page). "
    "report.json is always written; what no file needs is not computed.  [default: all]",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Store transforms and Jacobian rounded, as float32 that any tool reads, in about a quarter of the space: "
    "every point within 0.03 mm (else 0.01), every determinant within 0.2 %.",
)
@click.option("--forward-only", is_flag=True, help="Skip the inverse transform and the fixed scan warped by it.")
@click.option(
    "--report/--no-report", default=True, show_default=True, help="Write report.html, to look at in a browser."
)
@click.option("--report-full", is_flag=True, help="Keep the volumes in report.html at the network's resolution: 8 MB.")
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
    from ..registration.output.folder import PAGE, PREVIEW, REPORT, Outputs
    from ..registration.output.index import INDEX, results_in, write_index
    from ..registration.quality.verdict import FAILED

    tasks = plan_tasks(output, moving, moving_labels, moving_mask)
    conventions = _names(write)
    kinds = None if outputs is None else _names(outputs)
    outputs = Outputs(conventions, not forward_only, report or report_full, report_full, kinds, compact)
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


def _names(text: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(","))


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
