"""`apply`, `compose`, `invert`, `jacobian`, `convert`: what can be done with transforms, ours and other tools'."""

import contextlib
import functools
import shlex
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from .terminal import NAN, OVERWRITE, PATH, QUIET, StageLine, one_line_errors

IMAGES = (".nii.gz", ".nii")
SUFFIXES = {  # of the files that hold a transform; the first ones hold fields
    "itk": (*IMAGES, ".txt", ".tfm", ".mat"),
    "freesurfer": (*IMAGES, ".lta"),
    "fsl": (*IMAGES, ".mat"),
    "learn2reg": IMAGES,
    "h5": (".h5",),
    "ras": (".txt",),
}


def chain_options(starts: str = "where the first -t starts"):
    """What every command on a chain of transforms takes; `starts` is in words where results lie without a reference."""
    options = (
        click.option(
            "-t",
            "--transform",
            "transforms",
            multiple=True,
            metavar="FILE[,inverse]",
            help="Transform; may be repeated, from the reference to the scan: the order of antsApplyTransforms.",
        ),
        click.option("--reference", type=PATH, help=f"Image on the grid of the result.  [default: {starts}]"),
        click.option("--output", type=PATH, required=True, help="File to write."),
        click.option(
            "--convention",
            type=click.Choice(["auto", *SUFFIXES]),
            default="auto",
            show_default=True,
            help="Of -t files that do not say theirs: fields without an intent, matrices of FLIRT (fsl).",
        ),
        click.option("--fixed", type=PATH, help="Image where the -t start, if they do not say it: affines."),
        click.option("--moving", type=PATH, help="Image where the -t end, if they do not say it: also FSL's warps."),
        QUIET,
        OVERWRITE,
        one_line_errors,
    )
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


TO = click.option(
    "--to",
    type=click.Choice([*SUFFIXES]),
    default="itk",
    show_default=True,
    help="Convention to write: .nii.gz, of h5 .h5. Affines also as .txt, .tfm or .mat of itk, .mat of fsl (FLIRT), "
    ".lta of freesurfer, .txt of ras (4x4, RAS mm).",
)


@click.command()
@click.option("--image", type=PATH, help="Image, or 4-D series, to carry along.")
@click.option("--labels", type=PATH, help="Label map to carry along.")
@click.option("--points", type=PATH, help="Points to carry along: CSV, .fcsv or .mrk.json.")
@click.option(
    "--interpolation",
    type=click.Choice(["linear", "cubic", "nearest", "smooth"]),
    help="Images: linear, cubic, nearest; labels: nearest, smooth.  [default: linear; nearest]",
)
@click.option(
    "--motion",
    metavar="FOLDER|GLOB",
    help="Of a 4-D --image: one transform for each volume, in the order of names, from where the -t end into it.",
)
@NAN
@click.option("--outside", type=float, help="Value of what lies outside the image, e.g. -1024 for CT.  [default: 0]")
@click.option(
    "--points-in",
    type=click.Choice(["ras", "lps", "voxels"]),
    help="What the coordinates are; both files have the same. x,y,z do not tell it.",
)
@click.option("--scan", type=PATH, help="Image whose voxels the points are, where no -t tells its grid.")
@chain_options()
def apply(image, labels, points, interpolation, motion, nan, outside, points_in, scan, quiet, **choices) -> None:
    """Carry an image, a label map or points from a scan's space into a reference's.

    -t A -t B: a point of the reference goes through A, then B, and lies in the scan. The same -t carry images, labels
    and points; points go through the inverse, solved for each. However many -t there are, voxels are interpolated once.
    What is applied the wrong way round is refused, as far as files tell, with the command that is right.

    Images are written as float32 (integers stay integers where none was interpolated), label maps as integers, 4-D
    ones, which hold probabilities, as float32, points in the columns and kind they came in. Points that have no inverse
    are left empty, and the exit code is 1.
    """
    from ..transforms import apply as carry
    from ..transforms.points.tables import point_suffixes

    given = {"--image": image, "--labels": labels, "--points": points}
    if len([path for path in given.values() if path is not None]) != 1:
        raise click.UsageError("give one of --image, --labels and --points")
    for option, value in (("--outside", outside), ("--motion", motion), ("--nan", nan)):
        _only_for("--image", image, option, value)
    _only_for("--points", points, "--points-in", points_in)
    _only_for("--points", points, "--scan", scan)
    if points is not None:
        _only_for("--image or --labels", None, "--interpolation", interpolation)
    route = _route(choices, [*given.values(), scan], point_suffixes(points) if points else IMAGES)
    output = choices["output"]
    with _working(quiet) as stages:
        if image is not None:
            done = carry.apply_image(image, route, output, interpolation or "linear", outside or 0, stages, nan, motion)
        elif labels is not None:
            done = carry.apply_labels(labels, route, output, interpolation, stages)
        else:
            done = carry.apply_points(points, route, output, points_in, scan, stages)
    if not quiet:
        click.echo(done.summary)
    if done.failed:
        raise click.ClickException(done.failed)


@click.command()
@TO
@chain_options()
def compose(to, quiet, **choices) -> None:
    """Make one file of a chain of transforms.

    -t A -t B: a point of the reference goes through A, then B, as for `apply`. The result is a field on the reference's
    grid; of affines alone it may be one. It is read back and compared before it stands there.
    """
    from ..transforms.operations import compose

    _tell(compose, choices, SUFFIXES[to], quiet, to)


@click.command()
@TO
@chain_options("where the last -t ends")
def invert(to, quiet, **choices) -> None:
    """Make the inverse of a transform, as a file.

    It lies on the grid where the transform ends, or on --reference. What it misses by, and the share of voxels for
    which there is no inverse because the transform folds, are printed. Several -t are inverted as one.
    """
    from ..transforms.operations import invert

    _tell(invert, choices, SUFFIXES[to], quiet, to)


@click.command()
@TO
@chain_options()
def convert(to, quiet, **choices) -> None:
    """Write a transform in another tool's convention.

    It stays the same map, on the same grid unless there is a --reference, and is read back and compared before it
    stands there.
    """
    if len(choices["transforms"]) > 1:
        raise click.UsageError("give one -t; compose makes one file of several")
    from ..transforms.operations import compose

    _tell(compose, choices, SUFFIXES[to], quiet, to)


@click.command()
@click.option("--log", is_flag=True, help="Write the natural logarithm: 0 where volumes stay, below where they shrink.")
@chain_options()
def jacobian(log, quiet, **choices) -> None:
    """Map how a chain of transforms changes volumes: its Jacobian determinant.

    1 where volumes stay, 2 where a mm3 of the reference is 2 mm3 of the scan, 0 and below where the chain folds. Prints
    the extremes, the share of folded voxels, and SDlogJ, the standard deviation of the others' logarithm.
    """
    from ..transforms.operations import jacobian

    _tell(jacobian, choices, IMAGES, quiet, log)


def _tell(write, choices: dict, suffixes: tuple[str, ...], quiet: bool, *arguments) -> None:
    """Writes something of a chain, and prints what it says."""
    route = _route(choices, [], suffixes, at_least=1)
    with _working(quiet) as stages:
        told = write(route, choices["output"], *arguments, stages)
    if not quiet:
        click.echo(told)


def _route(choices: dict, inputs: list, suffixes: tuple[str, ...], at_least: int = 0):
    """The chain that was asked for, after the output has been found to be fit to write."""
    from ..host.files.output_path import check_output_file
    from ..transforms.chain import Link, Route

    if len(choices["transforms"]) < at_least:
        raise click.UsageError("give a transform: -t FILE")
    links = tuple(Link.parse(text) for text in choices["transforms"])
    route = Route(links, *(choices[name] for name in ("convention", "fixed", "moving", "reference")))
    check_output_file(choices["output"], choices["overwrite"], [*route.inputs, *inputs], suffixes)
    return route


def _only_for(kind: str, given: object, option: str, value: object) -> None:
    if value is not None and given is None:
        raise click.UsageError(f"{option} is for {kind}")


@contextlib.contextmanager
def _working(quiet: bool):
    """Shows stages, compiling first where need be; says of a chain the wrong way round the command that is right."""
    from ..errors import InputError
    from ..host.progress import Stages
    from ..registration.warmup import start_kernels
    from ..transforms import DirectionError

    with StageLine(quiet).shown() as line:
        start_kernels(Stages(line))
        try:
            yield line
        except DirectionError as error:
            raise InputError(f"{error.reason}; use: {_command_with(error.better)}") from None


def _command_with(transforms) -> str:
    """The command line as it was given, with other transforms."""
    context = click.get_current_context()
    script = sys.argv[0] if Path(sys.argv[0]).name == "cli.py" else "cli.py"
    words = ["python", script, context.info_name]
    for option in context.command.params:
        if context.get_parameter_source(option.name) != ParameterSource.COMMANDLINE:
            continue
        value = transforms if option.name == "transforms" else context.params[option.name]
        for one in value if option.multiple else [value]:
            words += [option.opts[0]] if option.is_flag else [option.opts[0], str(one)]
    return shlex.join(words)
