"""`doctor`: examine two scans and this machine before a registration."""

import click

from .terminal import ENGINE_DIR, NAN, PATH, Numbers, one_line_errors


@click.command()
@click.argument("fixed", type=PATH)
@click.argument("moving", type=PATH)
@ENGINE_DIR
@click.option("--fixed-mask", type=PATH, help="Mask of the fixed scan, as for register.")
@click.option("--moving-mask", type=PATH, help="Mask of the moving scan.")
@click.option("--affine", default="auto", show_default=True, help="As for register.")
@click.option("--window", type=Numbers(float, 2), metavar="LOW,HIGH", help="Intensities mapped to 0..1, for CT.")
@click.option(
    "--volume-factor", type=Numbers(float, 2), default=(0.3, 3.0), metavar="LOW,HIGH", help="As for register."
)
@click.option("--backend", default="auto", show_default=True, help="As for register.")
@click.option("--precision", default="auto", show_default=True, help="As for register.")
@click.option("--threads", type=click.IntRange(min=1), help="As for register.")
@NAN
@click.option("--json", "as_json", is_flag=True, help="Print the findings and all facts as JSON.")
@one_line_errors
def doctor(fixed, moving, engine_dir, fixed_mask, moving_mask, backend, precision, threads, as_json, **options) -> None:
    """Say what would go wrong if MOVING were registered to FIXED, before any work.

    Looks at headers, intensities, fields of view, sizes and overlap, at memory, the backend that would run, and the
    time to expect from earlier registrations on this machine. Takes about a second; no engine is opened. Findings do
    not change the exit code; input that `register` refuses ends in the same error.
    """
    from ..registration.batch.files import EngineChoice
    from ..registration.options import Options

    print_checkup(
        (fixed, moving),
        EngineChoice(engine_dir, backend, threads, precision),
        Options(**options),
        (fixed_mask, moving_mask),
        as_json,
    )


def print_checkup(scans, engines, options, masks=(None, None), as_json: bool = False) -> None:
    """Examine a pair of scans and print what was found, as text or as JSON."""
    from ..host.files.plain_json import as_json as json_text
    from ..workflows.checkup.examine import examine
    from ..workflows.checkup.text import text_of

    fixed, moving = scans
    found = examine(fixed, moving, engines, options, masks)
    click.echo(json_text(found.as_dict()) if as_json else text_of(found))
