"""Score registrations on realistic pairs, by group of pairs and group of structures.

    python -m measurements.validation --data DIR --output runs/validation --schedule 1,1,1,1 --schedule iterstop

Groups: `chain` (Mindboggle subjects one after the other), `pair` (two scans of a tutorial), `across` (each subject to
and from both of those, on the labels they share), `template` (each subject to and from the MNI152 brain), and couples
of which one scan is degraded (`thick`, `noise`, `contrast`, `bias`). Every couple is registered both ways. `--data`
holds pair/ and mindboggle/, none of which is part of this project. An interrupted run continues when started again.
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import click

from measurements.validation.methods import BEFORE, GREEDY, GREEDY_AFFINE, Method, parse_options
from measurements.validation.run import Folder, run
from measurements.validation.scans import GROUPS, Catalogue, Couple
from measurements.validation.tables import details, rows, table
from runtime.backends.engine_set import EngineSet, load_engine_set
from runtime.backends.engines import open_set
from runtime.commands.terminal import one_line_errors
from runtime.host.files.whole_files import write_text
from runtime.registration.options import Options

NO_FLOW = "0,0,0,0"


def methods_of(name: str, schedules: tuple[str, ...]) -> list[Method]:
    """Return the methods that run on an engine set; the affine initialisation is the same on all."""
    return [Method(name, text, parse_options(text)) for text in schedules]


def with_greedy(couples: list[Couple], each: int) -> list[Couple]:
    """Return the first `each` couples of every group."""
    chosen = [[couple for couple in couples if couple.group == group][:each] for group in GROUPS]
    return list(itertools.chain.from_iterable(chosen))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Holds pair/ and mindboggle/.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for records and tables.")
@click.option("--engine-dir", "engine_dirs", type=click.Path(path_type=Path), multiple=True, default=[Path("engines")])
@click.option("--schedule", "schedules", multiple=True, default=["1,1,1,1", "iterstop"], show_default=True,
              help="SCHEDULE:OPTION=VALUE:..., options as for `register`.")  # fmt: skip
@click.option("--group", "groups", multiple=True, type=click.Choice(GROUPS), help="May be repeated.  [default: all]")
@click.option(
    "--half", type=click.Choice(["a", "b"]), help="Every second couple of a group: a for choices, b for results."
)
@click.option("--affine", default="auto", show_default=True, help="auto, none, or OUTPUT of an earlier run.")
@click.option("--greedy", type=click.IntRange(min=0), default=0, help="Couples of each group registered by greedy too.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1))
@one_line_errors
def main(data, output, engine_dirs, schedules, groups, half, affine, greedy, backend, threads) -> None:
    folder, progress = Folder(output), partial(click.echo, err=True)
    couples = Catalogue(data, output / "scans").couples(groups or GROUPS, half)
    sets = {path.name: load_engine_set(path) for path in engine_dirs}
    jobs = _jobs(sets, schedules, couples, greedy)
    for name, (methods, chosen) in jobs.items():
        with open_set(sets[name], backend, threads) as engines:
            for part, of in zip(methods, chosen, strict=True):
                run(of, part, engines, affine, folder, progress)
    found = {}
    for name, (methods, chosen) in jobs.items():
        for part, of in zip(methods, chosen, strict=True):
            hashes = dict(sets[name].hashes)
            found |= {method.title: rows(of, method, hashes, affine, folder) for method in part}
    text = f"{table(found)}\n\n{details(found)}\n"
    write_text(output / "table.md", f"`{' '.join(sys.argv[1:])}`\n\n{text}")
    click.echo(text)


def _jobs(
    sets: dict[str, EngineSet], schedules: tuple[str, ...], couples: list[Couple], greedy: int
) -> dict[str, tuple[list[list[Method]], list[list[Couple]]]]:
    """Return, by engine set, lists of methods and the couples for each list; greedy runs with the first set."""
    jobs = {name: ([methods_of(name, schedules)], [couples]) for name in sets}
    methods, chosen = next(iter(jobs.values()))
    methods[0].insert(0, Method("", BEFORE, Options(schedule=NO_FLOW)))
    if greedy:
        methods.append([Method("", GREEDY_AFFINE), Method("", GREEDY)])
        chosen.append(with_greedy(couples, greedy))
    return jobs


if __name__ == "__main__":
    main()
