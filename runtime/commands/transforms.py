"""`apply`, `compose`, `invert`, `jacobian`, `convert`: commands on transforms, in any tool's format."""

import contextlib
import functools
import shlex
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from .terminal import NAN, OVERWRITE, PATH, QUIET, StageLine, one_line_errors

IMAGES = (".nii.gz", ".nii")
SUFFIXES = {  # suffixes of transform files; .nii.gz, .nii and .h5 hold fields
    "itk": (*IMAGES, ".txt", ".tfm", ".mat"),
    "freesurfer": (*IMAGES, ".lta"),
    "fsl": (*IMAGES, ".mat"),
    "learn2reg": IMAGES,
    "h5": (".h5",),
    "ras": (".txt",),
}


def chain_options(starts: str = "where the first -t starts"):
    """Return the options of every command on a chain; `starts` describes the result's grid without a reference."""
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
            help="Convention of -t files that do not state it: fields without an intent, FLIRT matrices (fsl).",
        ),
        click.option("--fixed", type=PATH, help="Image where the -t start, if they do not name it: affines."),
        click.option("--moving", type=PATH, help="Image where the -t end, if they do not name it: also FSL's warps."),
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
    help="Convention to write: .nii.gz, for h5 .h5. Affines also as .txt, .tfm or .mat for itk, .mat for fsl (FLIRT), "
    ".lta for freesurfer, .txt for ras (4x4, RAS mm).",
)


@click.command()
@click.option("--image", type=PATH, help="Image, or 4-D series, to resample.")
@click.option("--labels", type=PATH, help="Label map to resample.")
@click.option("--points", type=PATH, help="Points to map: CSV, .fcsv or .mrk.json.")
@click.option(
    "--interpolation",
    type=click.Choice(["linear", "cubic", "nearest", "smooth"]),
    help="Images: linear, cubic, nearest; labels: nearest, smooth.  [default: linear; nearest]",
)
@click.option(
    "--motion",
    metavar="FOLDER|GLOB",
    help="For a 4-D --image: one transform for each volume, in the order of names, from where the -t end into it.",
)
@NAN
@click.option("--outside", type=float, help="Value outside the image, e.g. -1024 for CT.  [default: 0]")
@click.option(
    "--points-in",
    type=click.Choice(["ras", "lps", "voxels"]),
    help="Frame of the coordinates, in both files; needed for columns x,y,z.",
)
@click.option("--scan", type=PATH, help="Image of voxel coordinates, if no -t holds its grid.")
@chain_options()
def apply(image, labels, points, interpolation, motion, nan, outside, points_in, scan, quiet, **choices) -> None:
    """Map an image, a label map or points from a scan's space to a reference's.

    -t A -t B: a point of the reference is mapped by A, then by B, to the scan. Use the same -t for images, labels and
    points; points are mapped by the inverse, which is solved for each of them. Voxels are interpolated once, for any
    number of -t. A transform in the wrong direction is rejected, if its file names its images, and the correct command
    is printed.

    Images are written as float32 (integers keep their type if nothing was interpolated), label maps as integers, 4-D
    label maps, which hold probabilities, as float32, and points in the format and columns of their file. Points without
    an inverse are left empty, and the exit code is 1.
    """
    from ..transforms import apply as application
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
            done = application.apply_image(
                image, route, output, interpolation or "linear", outside or 0, stages, nan, motion
            )
        elif labels is not None:
            done = application.apply_labels(labels, route, output, interpolation, stages)
        else:
            done = application.apply_points(points, route, output, points_in, scan, stages)
    if not quiet:
        click.echo(done.summary)
    if done.failed:
        raise click.ClickException(done.failed)


@click.command()
@TO
@chain_options()
def compose(to, quiet, **choices) -> None:
    """Compose a chain of transforms into one file.

    -t A -t B: a point of the reference is mapped by A, then B, as for `apply`. The result is a field on the reference's
    grid, or an affine if all parts are affine. The file is read back and compared before it is put in place.
    """
    from ..transforms.operations import compose

    _write_and_report(compose, choices, SUFFIXES[to], quiet, to)


@click.command()
@TO
@chain_options("where the last -t ends")
def invert(to, quiet, **choices) -> None:
    """Write the inverse of a transform to a file.

    The inverse is sampled on the grid where the transform ends, or on that of --reference. Prints its error, and the
    share of voxels without an inverse because the transform folds. Several -t are inverted as one chain.
    """
    from ..transforms.operations import invert

    _write_and_report(invert, choices, SUFFIXES[to], quiet, to)


@click.command()
@TO
@chain_options()
def convert(to, quiet, **choices) -> None:
    """Write a transform in another tool's convention.

    The map is unchanged, and so is its grid, unless there is a --reference. The file is read back and compared before
    it is put in place.
    """
    if len(choices["transforms"]) > 1:
        raise click.UsageError("give one -t; to join several into one file, use compose")
    from ..transforms.operations import compose

    _write_and_report(compose, choices, SUFFIXES[to], quiet, to)


@click.command()
@click.option(
    "--log", is_flag=True, help="Write the natural logarithm: 0 where volume is preserved, below 0 where it shrinks."
)
@chain_options()
def jacobian(log, quiet, **choices) -> None:
    """Write the Jacobian determinant of a chain: its local volume change.

    1 where volume is preserved, 2 where 1 mm3 of the reference is 2 mm3 of the scan, 0 and below where the chain folds.
    Prints the extremes, the share of folded voxels, and SDlogJ, the standard deviation of the logarithm over the other
    voxels.
    """
    from ..transforms.operations import jacobian

    _write_and_report(jacobian, choices, IMAGES, quiet, log)


def _write_and_report(write, choices: dict, suffixes: tuple[str, ...], quiet: bool, *arguments) -> None:
    """Run an operation on a chain that writes a file, and print its summary."""
    route = _route(choices, [], suffixes, at_least=1)
    with _working(quiet) as stages:
        summary = write(route, choices["output"], *arguments, stages)
    if not quiet:
        click.echo(summary)


def _route(choices: dict, inputs: list, suffixes: tuple[str, ...], at_least: int = 0):
    """Return the requested chain, after checking that the output can be written."""
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
    """Show stages, compile kernels if needed, and print the correct command for a chain in the wrong direction."""
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
    """Return the command line as it was given, but with other transforms."""
    context = click.get_current_context()
    script = sys.argv[0] if Path(sys.argv[0]).name == "cli.py" else "cli.py"
    assert context.info_name is not None
    words = ["python", script, context.info_name]
    for option in context.command.params:
        if context.get_parameter_source(option.name) != ParameterSource.COMMANDLINE:
            continue
        assert isinstance(option, click.Option)
        value = transforms if option.name == "transforms" else context.params[option.name]
        for one in value if option.multiple else [value]:
            words += [option.opts[0]] if option.is_flag else [option.opts[0], str(one)]
    return shlex.join(words)
