"""Scans distributed over processes: one pool of kernel threads each, no more threads than cores in total."""

import contextlib
import itertools
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from ...errors import InputError, ScarceError, system_reason
from ...host.machine import available_bytes, cores
from ...host.stopping import end_with_parent
from ...images.formats.image_file import read_header
from ...images.scan_list import Scan
from .options import PrepareOptions
from .output.folder import OutputFolder
from .scan.preparer import ScanOutcome, ScanPreparer
from .scan.reference import Reference

# Measured peak memory of a process: 0.5 GB for a scan of 256x256x160, 1 GB for a masked one of 488x404x224.
ALWAYS, PER_VOXEL = 300 * 2**20, 24  # bytes
LOOKED_AT = 20  # scans whose headers are read to estimate the largest size

_preparer: ScanPreparer | None = None  # set in each process of the pool


def outcomes(
    options: PrepareOptions, reference: Reference, folder: OutputFolder, scans: Mapping[str, Scan]
) -> Iterator[ScanOutcome]:
    """Prepare every scan of `scans` (by name), and yield the outcomes as they are ready.

    Raises:
        InputError: several jobs were asked for, but the system allows only one process.
        ScarceError: the system ended a process.
    """
    jobs = options.jobs or default_jobs(tuple(scans.values()))
    threads = max(cores() // jobs, 1)
    pool = None if jobs == 1 else _processes(jobs, (options, reference, folder, threads), options.jobs is not None)
    if pool is None:
        yield from _here(ScanPreparer(options, reference, folder, cores()), scans)
        return
    try:
        yield from _shared_out(pool, jobs, scans)
    except BrokenProcessPool:
        raise ScarceError(
            f"--jobs: one of {jobs} processes was ended by the system, probably for lack of memory; run the same "
            "command again with fewer jobs, finished scans are kept"
        ) from None


def _processes(jobs: int, arguments: tuple, asked_for: bool) -> ProcessPoolExecutor | None:
    """Return a pool of `jobs` processes.

    Without shared memory for a pool (/dev/shm, in some containers): None, or an error if the number was asked for.
    """
    try:
        return ProcessPoolExecutor(jobs, get_context("spawn"), _begin, arguments)
    except OSError as error:
        if not asked_for:
            return None
        raise InputError(
            f"--jobs: got {jobs}, but the system has no shared memory for more than one process "
            f"({system_reason(error)}); make /dev/shm writable or use --jobs 1"
        ) from None


def _shared_out(pool: ProcessPoolExecutor, jobs: int, scans: Mapping[str, Scan]) -> Iterator[ScanOutcome]:
    """Yield outcomes; each process has one scan and none queued, so that Ctrl-C waits for one scan at most."""
    tasks = iter(scans.items())
    with pool:
        running = {pool.submit(_prepare, *task) for task in itertools.islice(tasks, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_prepare, *task) for task in itertools.islice(tasks, len(done))}
            for future in done:
                yield future.result()


def default_jobs(scans: Sequence[Scan]) -> int:
    """Return the number of processes that the scans, the cores and the free memory allow."""
    most, memory = min(len(scans), cores()), available_bytes()
    if most == 1 or memory is None:
        return most
    largest = max(_voxels(scan.image) for scan in scans[:: -(-len(scans) // LOOKED_AT)])
    return max(1, min(most, memory // (ALWAYS + PER_VOXEL * largest)))


def _voxels(file: Path) -> int:
    """Return the number of voxels from the header; 0 for an unreadable file, which is reported when its turn comes."""
    with contextlib.suppress(InputError):
        return math.prod(read_header(file, "image").shape)
    return 0


def _here(preparer: ScanPreparer, scans: Mapping[str, Scan]) -> Iterator[ScanOutcome]:
    for name, scan in scans.items():
        yield preparer.prepare(name, scan)


def _begin(options: PrepareOptions, reference: Reference, folder: OutputFolder, threads: int) -> None:
    """Set up a new process before its first scan; Ctrl-C is ignored here and handled by the parent process."""
    import numba

    global _preparer
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    _preparer = ScanPreparer(options, reference, folder, threads)


def _prepare(name: str, scan: Scan) -> ScanOutcome:
    assert _preparer is not None
    return _preparer.prepare(name, scan)
