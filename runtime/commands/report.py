"""`report`: pages of registrations that exist."""

import click

from .terminal import PATH, QUIET, one_line_errors


@click.command()
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--report-full", is_flag=True, help="Keep the viewer's volumes at the resolution of the registration.")
@click.option("--index-only", is_flag=True, help="Only write the page of all registrations, not that of each.")
@click.option("--ratings", type=PATH, help="Start the page of all registrations with these ratings (ratings.tsv).")
@QUIET
@one_line_errors
def report(folder, report_full, index_only, ratings, quiet) -> None:
    """Write the pages of registrations that exist: report.html for one, index.html for several.

    DIR is the folder of a registration, or one with registrations below it. Then every registration gets its
    report.html, and DIR an index.html: worst first, with pictures to flicker, the distribution of each figure, and
    ratings by keyboard that can be saved. No engine runs; the scans have to be where they were.
    """
    from ..pages.index.ratings import read_ratings
    from ..registration.output.index import results_in, write_index
    from ..registration.output.page import rewrite_page

    rated = None if ratings is None else read_ratings(ratings)
    results = results_in(folder)
    if not results:
        from ..errors import InputError

        raise InputError(f"DIR: {folder} holds no registration, expected the folder of one, or of several")
    alone = results == [folder]
    for result in [] if index_only and not alone else results:
        path = rewrite_page(result, report_full)
        if not quiet:
            click.echo(f"wrote {path}")
    if not alone:
        path = write_index(folder, results, ratings=rated)
        if not quiet:
            click.echo(f"wrote {path}: {len(results)} registrations, the worst first")
