"""A cohort on the workers of Dask distributed: a cluster on this computer, of a batch system, or one that runs already.

A task is a block of pairs with one fixed scan. A worker opens its engines for each block. If a worker dies, Dask starts
another one and gives it the block again; the records tell it what is finished and which pair the worker died over.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....errors import InputError, NotAvailableError, first_line
from ....host.shipped import install_command
from ..records import MOST_ATTEMPTS, CohortFolder
from ..table import CohortRow
from ..work import CohortChoices, work

BLOCK = 20  # most pairs of a task: what is repeated after a death is only the opening of engines
CLUSTERS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}


def work_on_dask(
    rows: Sequence[CohortRow],
    choices: CohortChoices,
    folder: CohortFolder,
    tell: Callable[[str], None],
    workers: int,
    cluster: str | None = None,
    memory: str | None = None,
) -> Counter[str]:
    """Register pairs on the workers of Dask.

    Args:
        rows, choices, folder, tell: as for `runtime.workflows.cohort.work.work`.
        workers: number of worker processes, each for one pair at a time.
        cluster: None: workers on this computer; "slurm", "pbs", "lsf" or "sge": jobs of a batch system, as the
            configuration file of dask-jobqueue describes them; else the address of a scheduler that runs, or its file.
        memory: limit of each worker on this computer, such as "4GB"; None: its share of what there is.

    Returns:
        Number of pairs by state.

    Raises:
        NotAvailableError: Dask distributed, or dask-jobqueue, is not installed.
    """
    try:
        import dask
        from distributed import Client, as_completed
    except ModuleNotFoundError:
        raise NotAvailableError(
            f"--executor dask: needs the package distributed; {install_command('distributed')}"
        ) from None
    counts: Counter[str] = Counter()
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": len(rows) * MOST_ATTEMPTS}),
        _cluster(cluster, workers, memory) as address,
        Client(address) as client,
    ):
        facts = folder.path, dict(folder.facts), folder.retry_failed
        tasks = [client.submit(_block, block, choices, *facts, pure=False) for block in _blocks(rows)]
        for task in as_completed(tasks):
            found, lines = task.result()
            counts.update(found)
            for line in lines:
                tell(line)
    return counts


def _blocks(rows: Sequence[CohortRow]) -> Iterator[list[CohortRow]]:
    """Yield consecutive rows with one fixed scan, at most `BLOCK` at a time."""
    block: list[CohortRow] = []
    for row in rows:
        if block and (len(block) == BLOCK or row.fixed != block[-1].fixed):
            yield block
            block = []
        block.append(row)
    if block:
        yield block


def _block(
    rows: list[CohortRow], choices: CohortChoices, path: Path, facts: dict[str, Any], retry_failed: bool
) -> tuple[Counter[str], list[str]]:
    """Register a block in a worker; a pair that takes too long ends the worker."""
    lines: list[str] = []
    folder = CohortFolder(path, facts, retry_failed)
    try:
        return work(rows, choices, folder, tell=lines.append, on_timeout=lambda: os._exit(1)), lines
    except Exception as error:  # an exception that cannot be sent would leave the task without an end
        raise InputError(f"--executor dask: a worker failed ({type(error).__name__}: {first_line(error)})") from None


@contextmanager
def _cluster(name: str | None, workers: int, memory: str | None) -> Iterator[Any]:
    """Give a cluster with workers of one process and one thread each, or the address of one that runs already."""
    if name is None:
        from distributed import LocalCluster

        limit = memory or "auto"
        with LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=limit, dashboard_address=None) as local:
            yield local
    elif name in CLUSTERS:
        try:
            import dask_jobqueue
        except ModuleNotFoundError:
            raise NotAvailableError(
                f"--cluster {name}: needs the package dask-jobqueue; {install_command('dask-jobqueue')}"
            ) from None
        with getattr(dask_jobqueue, CLUSTERS[name])(processes=1) as batch:
            batch.adapt(minimum=workers, maximum=workers)  # a job that is cancelled is replaced
            yield batch
    else:
        if "://" not in name and not Path(name).is_file():
            known = ", ".join(CLUSTERS)
            raise InputError(
                f"--cluster: got {name!r}, expected one of {known}, an address such as tcp://host:8786, or the file "
                "of a scheduler"
            )
        yield name if "://" in name else _address_in(Path(name))


def _address_in(path: Path) -> str:
    import json

    return str(json.loads(path.read_text(encoding="utf-8"))["address"])
