"""`prepare`: preparation of native scans for training."""

import click

from .terminal import NAN, PATH, QUIET, Numbers, StageLine, exit_code_of_failures, one_line_errors


@click.command()
@click.option("--data", required=True, help="Folder or glob of images, or CSV: image and, if known, labels, mask.")
@click.option("--output", type=PATH, required=True, help="Folder for the results; run again to continue.")
@click.option(
    "--preset",
    type=click.Choice(["mindboggle", "flare"]),
    help="mindboggle: skull-stripped MRI of brains, reference mni152, 160,192,160 at 1 mm. flare: abdominal CT, "
    "reference first, 128,128,96 at 2.5 mm, window -200,300. Without a preset, give --reference and --shape; with one, "
    "the options below override it.",
)
@click.option(
    "--reference",
    help="Image to which scans are aligned: mni152 (a skull-stripped brain), first (of the list: put a typical scan "
    "of the whole region there) or a file; skull-stripped if, and only if, the scans are.",
)
@click.option("--shape", type=Numbers(int, 3), help="Voxels of the results along R, A, S: multiples of 8.")
@click.option("--spacing", type=float, help="Voxel size of the results, mm.  [default: 1, or the preset's]")
@click.option(
    "--window", type=Numbers(float, 2), metavar="LOW,HIGH", help="Intensities mapped to 0..1, for CT, e.g. -200,300."
)
@click.option("--percentile", type=float, help="Percentile of voxels above 0 mapped to 1, for MRI.  [default: 99.9]")
@click.option(
    "--affine",
    type=click.Choice(["auto", "rigid", "centre", "none"]),
    help="auto: centres of mass, rigid, affine, as `register`. rigid: preserves sizes. centre: centres of mass only, "
    "where an affine fails, such as CT of different extents. none: trust the headers.  [default: auto]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Scans at a time.  [default: as cores and memory allow]")
@NAN
@QUIET
@one_line_errors
def prepare(quiet, preset, **choices) -> None:
    """Prepare native scans for `train`: aligned, on one grid, intensities in 0..1.

    Each scan is aligned with the reference, resampled once (labels and masks: nearest neighbour) and, if it has a mask,
    set to 0 outside it. Writes images/, labels/, masks/, records/ (JSON, one for each scan, failures too), prepared.csv
    for `train --data`, and contact_sheet.png (check it: failures first, then by increasing similarity). Results are
    kept if files and options have not changed; failures are reported, and the other scans are still prepared.
    """
    from ..workflows.preparation import prepare_options, prepare_scans

    options = prepare_options(preset, **choices)
    with StageLine(quiet).shown() as stages:
        result = prepare_scans(options, stages)
    for record in result.failures:
        click.echo(f"Error: {record['name']}: {record['error']}", err=True)
    if not quiet:
        click.echo(result.summary())
    if result.failures:
        raise click.exceptions.Exit(exit_code_of_failures(result.only_scarcity))
