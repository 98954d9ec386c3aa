"""One process's part of a cohort: pairs registered one after another, read ahead and written beside."""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ...backends.engine_set import load_engine_set
from ...errors import InputError, ScarceError, is_scarcity, recorded
from ...host.background import Job, Jobs
from ...host.files.hashes import sha256_of_file
from ...host.progress import Stages
from ...registration.batch.files import EngineChoice
from ...registration.engines import Engines, PairOutcome, ScanPair
from ...registration.options import Options
from ...registration.output.folder import Outputs
from ...registration.scans import Registration
from ...registration.warmup import start_kernels
from .records import DONE, FAILED, Claim, CohortFolder
from .table import CohortRow
from .time_limit import TimeLimit

BUSY = "busy"  # another process is at work on the pair


@dataclass(frozen=True)
class Special:
    """What one pair has of its own: options other than the cohort's, and a note that its result depends on."""

    options: Options
    note: str = ""


@dataclass(frozen=True)
class CohortChoices:
    """How the pairs of a cohort are registered.

    Attributes:
        engines: engines to open.
        options: options of every pair, unless `special` has others.
        outputs: files of each result.
        special: by id, see `Special`.
        time_limit: seconds that a pair may take; None: any time.
        retry_failed: see `CohortFolder`.
    """

    engines: EngineChoice
    options: Options = field(default_factory=Options)
    outputs: Outputs = field(default_factory=Outputs)
    special: Mapping[str, Special] = field(default_factory=dict)
    time_limit: float | None = None
    retry_failed: bool = False

    def options_of(self, row: CohortRow) -> Options:
        """Return the options of a pair."""
        options = self.special[row.id].options if row.id in self.special else self.options
        return replace(options, affine=row.affine or options.affine)

    def facts(self) -> dict[str, Any]:
        """Return what all results depend on besides their inputs and their options."""
        hashes = load_engine_set(self.engines.engine_dir).hashes
        engines = {"hashes": hashes, "backend": self.engines.backend, "precision": self.engines.precision}
        return {"engines": engines, "outputs": vars(self.outputs)}

    def facts_of(self, row: CohortRow) -> dict[str, Any]:
        """Return what the result of one pair depends on besides."""
        note = self.special[row.id].note if row.id in self.special else ""
        options = self.options_of(row)
        link = options.start.link
        affine = None if link is None else sha256_of_file(link.path)
        return {"options": vars(options), "affine": affine, "note": note}


def work(
    rows: Sequence[CohortRow],
    choices: CohortChoices,
    folder: CohortFolder,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda line: None,
    on_timeout: Callable[[], None] | None = None,
) -> Counter[str]:
    """Register the pairs that are not finished yet, in order.

    Args:
        rows: in the order of `runtime.workflows.cohort.table.in_order`.
        choices: how.
        folder: of the cohort.
        stop: asked before each pair; True ends the work after the present pair.
        tell: receives a line for each pair when it is finished.
        on_timeout: called when a pair has taken longer than the time limit; it has to end this process.

    Returns:
        Number of pairs by state: done, failed, busy (another process is at work on them), kept (were done before).
    """
    counts: Counter[str] = Counter()
    with TimeLimit(choices.time_limit, on_timeout) as limit, ExitStack() as stack:
        opened: Engines | None = None
        queue = _Queue(folder, choices, stop, counts, limit)
        stack.callback(queue.release)
        for options, group in itertools.groupby(rows, choices.options_of):
            left = iter(list(group))
            pairs = queue.pairs(left)
            while (first := next(pairs, None)) is not None:
                if opened is None:
                    start_kernels(Stages(), alone=True)
                    engine_set = load_engine_set(choices.engines.engine_dir)
                    opened = stack.enter_context(_open(choices.engines, engine_set))
                try:
                    outcomes = opened.register_pairs(itertools.chain([first], pairs), options)
                    _take_all(outcomes, queue, folder, choices, opened, counts, tell)
                except Exception as error:  # one that no input should cause: the pair's record has all of it
                    claim = queue.take()
                    failure = recorded(error)
                    with claim.held:
                        folder.finish(claim, {"state": FAILED, **failure})
                    counts[FAILED] += 1
                    tell(f"{claim.row.id}: failed: {failure['error']}")
                    pairs = queue.pairs(itertools.chain(queue.release(), left))
                if stop():
                    break
            if stop():
                break
    return counts


def _open(engines: EngineChoice, engine_set: Any) -> Engines:
    from ...backends.engines import open_set

    return open_set(engine_set, engines.backend, engines.threads, engines.precision, kind=Engines)


class _Queue:
    """The pairs that are claimed, in the order in which their results come."""

    def __init__(
        self,
        folder: CohortFolder,
        choices: CohortChoices,
        stop: Callable[[], bool],
        counts: Counter[str],
        limit: TimeLimit,
    ) -> None:
        self._folder, self._choices, self._counts, self._limit, self.stop = folder, choices, counts, limit, stop
        self._waiting: deque[Claim] = deque()
        self._begun: Claim | None = None
        self.started = 0.0

    def pairs(self, rows: Iterator[CohortRow]) -> Iterator[ScanPair]:
        """Yield the scans of the rows that are to be registered; each is claimed as it is asked for.

        `Engines.register_pairs` asks for a pair before it registers the one before, so that one begins now.
        """
        for row in rows:
            if self.stop():
                break
            if (claim := self._claim(row)) is None:
                continue
            self._waiting.append(claim)
            if len(self._waiting) > 1:
                self._begin(self._waiting[0])
            yield ScanPair(row.fixed, row.moving, row.moving_labels, row.fixed_mask, row.moving_mask, row.id)
        if self._waiting:
            self._begin(self._waiting[0])

    def take(self) -> Claim:
        """Return the claim whose result has come."""
        claim = self._waiting.popleft()
        self._limit.end()
        return claim

    def release(self) -> list[CohortRow]:
        """Release the pairs that were claimed but not registered, and return them."""
        waiting = list(self._waiting)
        self._waiting.clear()
        for claim in waiting:
            claim.held.close()
        return [claim.row for claim in waiting]

    def _claim(self, row: CohortRow) -> Claim | None:
        try:
            claim = self._folder.claim(row, self._choices.facts_of(row))
        except ScarceError:
            self._counts[BUSY] += 1
            return None
        if claim is None:
            state = self._folder.record(row).get("state", FAILED)
            self._counts["kept" if state == DONE else state] += 1
        return claim

    def _begin(self, claim: Claim) -> None:
        if claim is self._begun:
            return
        self._begun, self.started = claim, time.perf_counter()
        self._folder.begin(claim)
        self._limit.begin(lambda words: self._folder.note(claim, words))


def _take_all(
    outcomes: Iterator[PairOutcome],
    queue: _Queue,
    folder: CohortFolder,
    choices: CohortChoices,
    engines: Engines,
    counts: Counter[str],
    tell: Callable[[str], None],
) -> None:
    """Take every outcome and write it while the next pair is registered."""
    with Jobs(engines.threads) as jobs:
        writing: Job[tuple[str, str]] | None = None

        def written() -> None:
            nonlocal writing
            if writing is not None:
                (state, line), writing = writing.take(), None
                counts[state] += 1
                tell(line)

        try:
            for outcome in outcomes:
                claim, seconds = queue.take(), time.perf_counter() - queue.started
                written()
                result = outcome.result if outcome.error is None else outcome.error
                writing = jobs.start(_finish, folder, claim, result, choices.outputs, seconds)
                del outcome, result
                if not jobs.beside:
                    written()
                if queue.stop():
                    break
        finally:
            written()


def _finish(
    folder: CohortFolder, claim: Claim, result: Registration | InputError, outputs: Outputs, seconds: float
) -> tuple[str, str]:
    """Write a result and its record, and release the pair; return its state and a line about it."""
    with claim.held:
        try:
            if isinstance(result, InputError):
                raise result
            result.save(folder.result(claim.row), overwrite=True, outputs=outputs, locked=True)
        except Exception as error:
            outcome = {"state": FAILED, **recorded(error), "seconds": seconds}
            folder.finish(claim, outcome)
            later = " (may succeed later)" if is_scarcity(error) else ""
            return FAILED, f"{claim.row.id}: failed: {outcome['error']}{later}"
        verdict = result.verdict
        folder.finish(
            claim,
            {
                "state": DONE,
                "verdict": verdict.verdict,
                "reasons": verdict.reasons,
                "figures": verdict.figures.as_dict(),
                "similarity": result.iterations.similarity,
                "warnings": len(result.warnings),
                "seconds": seconds,
            },
        )
        return DONE, f"{claim.row.id}: {verdict}, {seconds:.1f} s"
