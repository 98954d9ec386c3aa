"""`demo`: a sample pair with a known transform."""

import click

from .terminal import ENGINE_DIR, PATH, QUIET, StageLine, one_line_errors


@click.command()
@click.option("--output", type=PATH, default="demo", show_default=True, help="Folder for the pair and the result.")
@ENGINE_DIR
@QUIET
@one_line_errors
def demo(output, engine_dir, quiet) -> None:
    """Register a sample pair with a known warp.

    The pair is made from the MNI152 brain in nilearn: the moving scan is deformed and rotated, and gets another
    contrast, noise and a tilted header. Prints the error before and after registration, and the files to open.
    """
    from ..workflows.demo.run import run_demo

    lines: list[str] = []
    with StageLine(quiet).shown() as stages:
        run_demo(output, engine_dir, lines.append, stages)
    if not quiet:
        click.echo("\n".join(lines))
