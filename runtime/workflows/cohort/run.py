"""A cohort from table to summary: which pairs, on what, and how it ended."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...backends.engine_set import load_engine_set
from ...pages.index.ratings import Rating
from ...pages.page import check_ours
from ...registration.output.index import INDEX
from .records import FAILED, CohortFolder
from .summary import write_summary
from .table import CohortRow, in_order, shard, without
from .work import BUSY, CohortChoices

EXCLUDE = "exclude"


@dataclass(frozen=True)
class CohortOptions:
    """What `run_cohort` does.

    Attributes:
        rows: all pairs, in any order.
        output: folder of the cohort.
        choices: how each pair is registered.
        part: (index, count): only this part of the ordered rows; None: all.
        workers: number of worker processes of Dask; None: this process does the work.
        cluster, memory: see `runtime.workflows.cohort.executors.dask.work_on_dask`.
        ratings: decisions of people, by id: excluded pairs are left out.
        page: False to leave out index.html.
    """

    rows: Sequence[CohortRow]
    output: Path
    choices: CohortChoices
    part: tuple[int, int] | None = None
    workers: int | None = None
    cluster: str | None = None
    memory: str | None = None
    ratings: Mapping[str, Rating] = field(default_factory=dict)
    page: bool = True


@dataclass(frozen=True)
class CohortResult:
    """How a run ended.

    Attributes:
        counts: pairs of this part by outcome: done, kept (done before), failed, busy (another process holds them).
        states: all pairs of the cohort by the state of their records; "open" if there is none.
        stopped: True if a signal ended the work early.
        scarce: True if every failure of this part may succeed later.
    """

    counts: Counter[str]
    states: Counter[str]
    stopped: bool
    scarce: bool

    @property
    def complete(self) -> bool:
        """True if every pair of this part is done."""
        return not (self.stopped or self.counts[FAILED] or self.counts[BUSY])

    @property
    def try_again(self) -> bool:
        """True if the same command, run again, may do more."""
        return self.stopped or bool(self.counts[BUSY]) or (bool(self.counts[FAILED]) and self.scarce)


def run_cohort(options: CohortOptions, tell: Callable[[str], None] = lambda line: None) -> CohortResult:
    """Register every pair of a cohort that is not finished, and write the summary.

    Args:
        options: see `CohortOptions`.
        tell: receives a line for each pair that ended.

    Raises:
        InputError: options or engines that make every registration impossible, or an output folder that cannot be used.
    """
    choices = options.choices
    engine_set = load_engine_set(choices.engines.engine_dir)
    choices.engines.check(engine_set)
    for one in (choices.options, *(special.options for special in choices.special.values())):
        resolved = one.resolved(engine_set)
        resolved.build_schedule(), resolved.start
    check_ours(options.output / INDEX)
    excluded = {name for name, rating in options.ratings.items() if rating.decision == EXCLUDE}
    rows = in_order(without(options.rows, excluded))
    if options.part is not None:
        rows = shard(rows, *options.part)
    folder = CohortFolder(options.output, choices.facts(), choices.retry_failed)
    stopped = False
    if options.workers is None and options.cluster is None:
        from .executors.local import work_here

        counts, stopped = work_here(rows, choices, folder, tell)
    else:
        from .executors.dask import work_on_dask

        counts = work_on_dask(rows, choices, folder, tell, options.workers or 1, options.cluster, options.memory)
    failures = [record for row in rows if (record := folder.record(row)).get("state") == FAILED]
    states = write_summary(folder, without(options.rows, excluded), options.ratings, options.page)
    return CohortResult(counts, states, stopped, all(record.get("scarce") for record in failures))
