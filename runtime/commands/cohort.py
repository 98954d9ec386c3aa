"""`cohort`: every pair of a table, on a laptop or a cluster; and `pairs`, which writes such a table."""

import shlex

import click

from .registration_options import ENGINES, OUTPUTS, REGISTRATION, outputs_of, registration_options, with_options
from .terminal import ENGINE_DIR, INSTALLED, PATH, QUIET, TRY_LATER, one_line_errors


@click.command()
@click.option("--pairs", type=PATH, required=True, help="TSV or CSV: id, fixed, moving, ... (docs/guide/cohort.md).")
@click.option("--output", type=PATH, required=True, help="Folder of the cohort; run again to continue.")
@click.option("--shard", metavar="i/n", help="Only this part of the pairs, i from 0 to n - 1.")
@click.option(
    "--executor",
    type=click.Choice(["local", "dask", "slurm"]),
    default="local",
    show_default=True,
    help="local: this process. dask: --workers processes of Dask distributed. slurm: an array of jobs, one per shard.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes of Dask, or shards of the Slurm array.")
@click.option(
    "--cluster",
    metavar="slurm|pbs|lsf|sge|ADDRESS",
    help="For dask: a batch system, configured by dask-jobqueue's own file, or a scheduler that runs already.",
)
@click.option("--memory", help="Limit of each worker, such as 4GB.  [default: its share; for slurm 4G]")
@click.option("--slurm-time", default="04:00:00", show_default=True, help="Time limit of each task of the array.")
@click.option("--slurm-option", multiple=True, metavar="OPTION", help="Further option for sbatch; may be repeated.")
@click.option("--print", "printed", is_flag=True, help="For slurm: print the job script instead of submitting it.")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), help="Seconds that a pair may take.")
@click.option("--retry-failed", is_flag=True, help="Try pairs again whose error is not a passing one.")
@click.option("--ratings", type=PATH, help="ratings.tsv of the cohort's page: exclude pairs, redo others with options.")
@ENGINE_DIR
@with_options(REGISTRATION, ENGINES)
@with_options(OUTPUTS)
@QUIET
@click.pass_obj
@one_line_errors
def cohort(
    tools,
    pairs,
    output,
    shard,
    executor,
    workers,
    cluster,
    memory,
    slurm_time,
    slurm_option,
    printed,
    time_limit,
    retry_failed,
    ratings,
    engine_dir,
    backend,
    precision,
    threads,
    write,
    outputs,
    compact,
    forward_only,
    report,
    report_full,
    quiet,
    **options,
) -> None:
    """Register every pair of a table, each once, with a record of each.

    Writes pairs/ID/ (as `register`), records/ID.json, summary.tsv and, when every pair is finished, index.html. Pairs
    that are done are kept, by the content of their files, the engines and the options; a killed run continues where it
    was. A pair that cannot be registered is recorded, and the others go on. Several processes may work in one folder.
    Exit code 0: all done; 1: some failed; 75: stopped, or short of something for the moment: run it again.
    """
    from ..registration.batch.files import EngineChoice
    from ..registration.options import Options
    from ..workflows.cohort.run import CohortOptions, run_cohort
    from ..workflows.cohort.table import parse_shard, read_table
    from ..workflows.cohort.work import CohortChoices

    rows = read_table(pairs)
    part = None if shard is None else parse_shard(shard)
    if executor == "slurm":
        _array(tools, workers or 1, memory or "4G", slurm_time, slurm_option, printed, threads)
        return
    if executor == "local" and (workers or cluster or memory):
        raise click.UsageError("--workers, --cluster and --memory are for --executor dask or slurm")
    files = outputs_of(write, outputs, compact, forward_only, report, report_full)
    rated, special = _decisions(ratings, Options(**options))
    result = run_cohort(
        CohortOptions(
            rows,
            output,
            CohortChoices(
                EngineChoice(engine_dir, backend, threads or (1 if executor == "dask" else None), precision),
                Options(**options),
                files,
                special,
                time_limit,
                retry_failed,
            ),
            part,
            workers if executor == "dask" else None,
            cluster,
            memory,
            rated,
            files.wants("report"),
        ),
        (lambda line: None) if quiet else click.echo,
    )
    if not quiet:
        here = ", ".join(f"{count} {state}" for state, count in sorted(result.counts.items())) or "nothing to do"
        whole = ", ".join(f"{count} {state}" for state, count in sorted(result.states.items()))
        click.echo(f"this run: {here}; the cohort: {whole}\nwrote {output}/summary.tsv")
    if not result.complete:
        raise click.exceptions.Exit(TRY_LATER if result.try_again else 1)


def _decisions(path, options):
    """Return ratings by id, and the options of the pairs that are to be done again."""
    from dataclasses import replace

    from ..pages.index.ratings import read_ratings
    from ..workflows.cohort.work import Special

    if path is None:
        return {}, {}
    rated = read_ratings(path)
    special = {}
    for name, rating in rated.items():
        if rating.decision == "redo":
            given = registration_options(shlex.split(rating.options), f"--ratings: {path}, options of {name}")
            special[name] = Special(replace(options, **given), f"redo {rating.options} {rating.note}")
    return rated, special


def _array(tools, shards, memory, time, further, printed, threads) -> None:
    from ..workflows.cohort.executors.slurm import SlurmChoices, script, submit

    choices = SlurmChoices(shards, threads or 2, memory, time, None, tuple(further))
    text = script([*(tools.command if tools else INSTALLED), "cohort", *_words_of_the_work()], choices)
    click.echo(text if printed else submit(text))


def _words_of_the_work() -> list[str]:
    """Return the words of this command line that each task repeats: all but those about Slurm and shards."""
    context = click.get_current_context()
    left_out = ("executor", "workers", "cluster", "memory", "slurm_time", "slurm_option", "printed", "shard", "threads")
    words = []
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
        if not given or parameter.name in left_out:
            continue
        value = context.params[parameter.name]
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [parameter.opts[0], text]
    return words


@click.command()
@click.argument("scans", nargs=-1, type=PATH)
@click.option("--all", "every", is_flag=True, help="Every ordered pair of the scans.")
@click.option("--to", "fixed", type=PATH, help="Each scan to this fixed one.")
@click.option("--bids", type=PATH, help="Folder of a BIDS dataset: its anatomical scans, with their entities.")
@click.option("--within-subject", is_flag=True, help="With --bids: each session of a subject to the first one.")
@click.option("--filter", "filters", multiple=True, metavar="ENTITY=VALUE", help="With --bids; suffix=T1w by default.")
@click.option("--output", type=PATH, required=True, help="The table to write, .tsv.")
@one_line_errors
def pairs(scans, every, fixed, bids, within_subject, filters, output) -> None:
    """Write a table of pairs for `cohort`; register nothing."""
    from ..errors import InputError
    from ..workflows.cohort.bids import bids_rows, parse_filters
    from ..workflows.cohort.table import all_pairs, all_to, relative_to, write_table

    if bool(scans) == bool(bids):
        raise click.UsageError("give either scans, or --bids")
    if bids:
        if bool(fixed) == within_subject:
            raise click.UsageError("with --bids give either --to or --within-subject")
        rows = bids_rows(bids, fixed, parse_filters(filters))
    else:
        if every == bool(fixed) or within_subject:
            raise click.UsageError("give either --all or --to for a list of scans")
        rows = all_pairs(scans) if every else all_to(fixed, scans)
    if not rows:
        raise InputError("no pair was found; two scans at least are needed, or one besides --to")
    write_table(output, relative_to(rows, output.parent))
    click.echo(f"wrote {output}: {len(rows)} pairs")
