"""Command line of the RP-Net / IIRP-Net deployment pipeline. Each command parses, calls one function, and prints.

The commands that need more than `runtime` are here; the others are in `runtime.commands`.
"""

import functools
import sys
from pathlib import Path

from runtime.host.stopping import Stopped, end_on_signals

if __name__ == "__main__":
    end_on_signals()  # until `run` handles signals: the imports below take a moment

# isort: split
import click

from runtime.commands import COMMANDS
from runtime.commands.terminal import (
    ENGINE_DIR,
    PATH,
    QUIET,
    CloneTools,
    InSections,
    Numbers,
    SectionOption,
    StageLine,
    one_line_errors,
    program,
    run,
)

DATA, LOSS, STEPS, COMPUTING, FILES = (
    functools.partial(click.option, cls=SectionOption, section=name)
    for name in ("Data", "Network and loss", "Optimiser", "Computing", "Files and validation")
)
SHARE = functools.partial(LOSS, type=float, default=0.0, show_default=True)


def _export_quietly(checkpoint: Path, engine_dir: Path) -> None:
    from export.publish import ExportOptions, export_checkpoint

    export_checkpoint(checkpoint, engine_dir, ExportOptions(fp16=False))


def _torch_contenders(options, timed: bool):
    from export.contender import TorchContender, torch_others

    if timed:
        TorchContender(options.engine_dir, options.threads).require()
    return functools.partial(torch_others, options.engine_dir, options.threads, timed)


THIS_PROGRAM = sys.executable, str(Path(__file__).resolve())
main = program(COMMANDS, CloneTools(_export_quietly, _torch_contenders, THIS_PROGRAM))


@main.command()
@click.option(
    "--checkpoint", type=PATH, required=True, help="best.pt of `train`, or a checkpoint of the paper's authors."
)
@ENGINE_DIR
@click.option("--gate-shape", type=Numbers(int, 3), help="Size of the gate's pair.  [default: 64,80,72, or the scans']")
@click.option("--gate-fixed", type=PATH, help="Run the parity gate on two real scans instead of generated ones.")
@click.option("--gate-moving", type=PATH, help="See --gate-fixed.")
@click.option("--spacing", type=float, default=1.0, show_default=True, help="Voxel size the network expects, mm.")
@click.option("--window", type=Numbers(float, 2), help="LOW,HIGH intensity window the network was trained with (CT).")
@click.option("--notes", type=PATH, help="Markdown to append to the model card.")
@click.option("--no-fp16", is_flag=True, help="Write graphs in fp32 only; TensorRT then computes in fp32 too.")
@QUIET
@one_line_errors
def export(checkpoint, engine_dir, gate_shape, gate_fixed, gate_moving, spacing, window, notes, no_fp16, quiet) -> None:
    """Convert a checkpoint to an engine set.

    The feature extractor and the four flow estimators become ONNX graphs, in fp32 and in fp16 (for NVIDIA GPUs). They
    are published, in one atomic step, only after whole registrations with them match those of the PyTorch network: in
    fp32 within 0.01 voxel everywhere and with the same iteration counts, in fp16 within 0.05 voxel on average.
    """
    from export.publish import ExportOptions, export_checkpoint

    options = ExportOptions(gate_shape, gate_fixed, gate_moving, spacing, window, notes, fp16=not no_fp16)
    export_checkpoint(checkpoint, engine_dir, options, (lambda line: None) if quiet else click.echo)


@main.command()
@click.option(
    "--cases", type=PATH, required=True, help="Folder of records that `python -m measurements.quality` wrote."
)
@ENGINE_DIR
@click.option("--test-half", help="Half of the subjects to test on; the score is fitted on the other.")
@click.option("--leave-out", multiple=True, help='Cases that no image shows: "mirrored left-right".')
@click.option("--without", multiple=True, help="Figure that is left out of the score.")
@one_line_errors
def calibrate(cases, engine_dir, test_half, leave_out, without) -> None:
    """Fit the verdict's score to an engine set, on registrations whose outcome is known.

    The score and the counts it was fitted and tested on are stored in the set's manifest. `register` then judges
    every registration by them.
    """
    from export.calibrate import calibrate, text_of

    click.echo(text_of(calibrate(cases, engine_dir, test_half, leave_out, without)))


@one_line_errors
def _take_recipe(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the options of a recipe the defaults; options on the command line take precedence."""
    if path is not None:
        from train.recipe import read_recipe

        context.default_map = read_recipe(path)


@main.command(cls=InSections)
@DATA(
    "--recipe",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=_take_recipe,
    help="TOML file of these options, such as train/recipes/long.toml; the command line takes precedence.",
)
@DATA("--data", help="Folder, glob or CSV (column image, optionally labels and mask) of prepared volumes.")
@DATA("--generated", is_flag=True, help="Train on pairs generated on the fly; no data needed.")
@DATA("--validation", help="List of volumes or pairs for validation.  [default: the last of --data, or generated]")
@DATA("--validation-volumes", type=int, help="Volumes held out from --data if there is no --validation.  [default: 4]")
@DATA("--validation-pairs", type=int, default=8, show_default=True, help="Largest number of validation pairs.")
@DATA("--template", help="Base of some generated pairs: mni152 (from nilearn) or a skull-stripped scan.")
@DATA(
    "--generator",
    type=click.Choice(["alike", "varied"]),
    default="alike",
    show_default=True,
    help="alike: pairs of one data set, as in papers. varied: also averages, other scanners, ages, lesions.",
)
@DATA(
    "--shape", type=Numbers(int, 3), help="Size of generated pairs [default: 80,96,80], or to crop and pad --data to."
)
@DATA("--augment", type=float, default=0.0, show_default=True, help="Strength of random changes of --data; 0: none.")
@DATA("--cache", type=int, default=4096, show_default=True, help="MB of memory for volumes read from --data.")
@DATA(
    "--workers",
    type=int,
    default=0,
    show_default=True,
    help="Processes that make pairs in parallel; not for pairs generated on a GPU.",
)
@DATA("--seed", type=int, default=0, show_default=True, help="Seed of the initial weights and all random numbers.")
@LOSS("--res-blocks", type=int, default=2, show_default=True, help="Residual blocks per estimator, 0 to 4.")
@LOSS("--loss", type=click.Choice(["plain", "squared"]), default="plain", show_default=True, help="Local NCC.")
@LOSS("--smooth", type=float, default=1.0, show_default=True, help="Lambda, the weight of smoothness.")
@SHARE("--dice", help="Weight of soft Dice; needs label maps.")
@LOSS(
    "--dice-labels",
    type=click.Choice(["all", "deep"]),
    default="all",
    show_default=True,
    help="Labels in the Dice loss; deep: ventricles and deep structures, of generated pairs.",
)
@SHARE("--coarse", help="Weight of an extra loss on coarse flows (deep supervision), decreasing to 0 over the run.")
@SHARE("--bending", help="Weight of the flow's bending energy.")
@SHARE("--log-jacobian", help="Weight of the squared logarithm of the flow's Jacobian determinant.")
@LOSS("--both-directions", is_flag=True, help="Each step uses its pairs in both directions, features computed once.")
@SHARE("--inverse-consistency", help="Weight of the residual of composing the flows of both directions.")
@LOSS(
    "--iterations",
    type=Numbers(int, 4),
    default=(1, 1, 1, 1),
    help="Largest iteration counts at levels 4,3,2,1; each step draws counts from 1 to these.  [default: 1,1,1,1]",
)
@SHARE("--half-size", help="Share of the run, from its start, at half the image size.")
@STEPS("--steps", type=int, default=100_000, show_default=True, help="Training steps.")
@STEPS("--minutes", type=float, help="End after this much training time, whatever --steps says.")
@STEPS(
    "--finish",
    type=int,
    default=0,
    help="With --resume-from: end after this many steps, with a cosine learning rate; later --resume continues.",
)
@STEPS(
    "--accumulate", type=int, default=1, show_default=True, help="Pairs per step and process (gradient accumulation)."
)
@STEPS("--learning-rate", type=float, default=1e-4, show_default=True, help="Adam's step size.")
@STEPS("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True)
@STEPS("--warmup", type=int, default=0, show_default=True, help="Steps of linear learning rate warm-up.")
@STEPS("--clip", type=float, default=0.0, show_default=True, help="Largest gradient norm; 0: none.")
@STEPS(
    "--average",
    type=float,
    default=0.0,
    show_default=True,
    help="Decay of a running mean of the weights (exponential moving average, EMA); 0: none.",
)
@COMPUTING(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 if the processor or GPU supports it, else fp32. fp16: on GPUs, with gradient scaling.",
)
@COMPUTING(
    "--channels-last",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Memory layout of features and weights. auto: on with bf16 and fp16.",
)
@COMPUTING("--compile", is_flag=True, help="Compile the convolutions (torch.compile); the first steps take longer.")
@COMPUTING("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@COMPUTING("--threads", type=int, help="CPU threads.  [default: all cores; under torchrun its setting]")
@FILES("--output", type=PATH, required=True, help="Folder for best.pt, last.pt, log.csv and the files below.")
@FILES("--validate-every", type=int, default=200, show_default=True, help="Steps between validations.")
@FILES("--pictures", type=int, default=0, show_default=True, help="Validations between pictures of a pair; 0: none.")
@FILES("--tensorboard", is_flag=True, help="Log curves (and pictures) for TensorBoard too, into tensorboard/.")
@FILES("--save-minutes", type=float, default=5.0, show_default=True, help="Minutes between two saves of last.pt.")
@FILES("--resume", is_flag=True, help="Continue last.pt of --output exactly; give the same options again.")
@FILES("--resume-from", type=PATH, help="Continue the last.pt of another folder exactly, in a new --output.")
@FILES("--start", type=PATH, help="Checkpoint whose weights a new run starts from; it may have fewer --res-blocks.")
@FILES("--licence", default="not stated", show_default=True, help="Licence of the weights.")
@QUIET
@one_line_errors
def train(data, generated, quiet, **options) -> None:
    """Train RP-Net on scans (--data) or on generated pairs (--generated).

    Defaults are those of the paper: Adam, learning rate 1e-4, one pair per step, local NCC plus smoothness, one
    iteration per level. Except the precision: bf16 if the processor supports it.

    Validation registers pairs that are not used for training, with RP-Net and with IterStop. best.pt is chosen by the
    Dice of IterStop if validation volumes have label maps, else by its NCC.

    A recipe (--recipe) is a file with these options. --finish ends a run of constant learning rate in another folder,
    so that the run itself can still be continued.

    Ctrl-C saves and ends after the current step (exit code 130; SIGTERM: 143). Several processes or GPUs: torchrun
    --nproc-per-node N cli.py train ...; a step then takes N times --accumulate pairs.
    """
    if bool(data) == generated:
        raise click.UsageError("give either --data LIST or --generated")
    from train.fit import fit
    from train.options import FitOptions
    from train.steps.distributed import is_first

    quiet = quiet or not is_first()
    with StageLine(quiet).shown() as line:
        result = fit(FitOptions(data=data, **options), lambda progress: _show_step(line, progress))
    if not quiet:
        state = "interrupted, --resume continues" if result.interrupted else "finished"
        minutes = result.seconds / 60
        click.echo(f"{state} after {result.steps} steps, {minutes:.1f} min ({result.device}, {result.precision})")
        best = f"best {result.best_by} {result.best:.4f}: {result.best_path}; " if result.best_path else ""
        click.echo(f"{best}log: {result.log_path}")
    if result.interrupted:
        raise Stopped(result.interrupted)


def _show_step(line: StageLine, progress) -> None:
    """Show the progress of training: on a terminal after every step, else after the first one and every validation."""
    if progress.first or progress.validated or line.changes:
        from runtime.host.progress import duration

        left = duration(progress.seconds_left)
        line(f"{progress.step} of {progress.steps} steps, {left} left  {progress.line()}")


if __name__ == "__main__":
    run(main, "cli.py")
