"""Evaluation of pairs by many methods on one or several engine sets, resumed where an earlier run ended."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from ...backends.engines import OpenEngines, check_choice, open_set
from ...errors import InputError, recorded
from ...host.files.folder_lock import folder_lock
from ...host.files.hashes import sha256_of_facts
from ...host.progress import Countdown, Progress, Stages, silent
from ...host.shipped import install_command
from ...registration.output.report import versions
from ...registration.warmup import start_kernels
from .engine_sets import NamedSet, open_sets
from .methods import BEFORE, TRANSFORM, Method, methods
from .options import EvaluateOptions, Export
from .pair_list import EvaluationPair, label_ids_of
from .results.evaluation import Evaluation
from .results.figures import write_pictures
from .results.folder import PAIRS, Record, ScoresFolder
from .results.page import write_evaluation_page
from .results.tables import write_tables
from .scoring.pair_scorer import PairScorer


def evaluate(options: EvaluateOptions, progress: Progress = silent, export: Export | None = None) -> Evaluation:
    """Score every pair by every method, and write records, tables, pictures and a page into ``options.output``.

    Scores of an earlier run with the same files, options and engines are kept. A failure of a pair or a method is
    recorded, the others continue, and the next run tries it again. Needs a process of its own (see `start_kernels`).

    Args:
        options: see `EvaluateOptions`.
        progress: receives the current stage, how much is done and an estimate of the remaining time.
        export: writes the engine set of a checkpoint; required if there are checkpoints.

    Raises:
        InputError: options, engine sets or folders that cannot be used, or a package that is not installed.
        ScarceError: another run has locked the folder.
    """
    if importlib.util.find_spec("matplotlib") is None:  # checked before all the work whose results it draws
        raise InputError(f"needs the package matplotlib, which is not installed; {install_command('matplotlib')}")
    _ = options.start.start
    with folder_lock(options.output, subfolders=[PAIRS]):
        return _evaluate(options, progress, export)


def _evaluate(options: EvaluateOptions, progress: Progress, export: Export | None) -> Evaluation:
    folder = ScoresFolder(options)
    sets = open_sets(options, export, progress)
    plan = _Plan(options, sets)
    start_kernels(Stages(progress))
    records = {pair.name: folder.begin(pair, label_ids_of(pair, options.label_ids)) for pair in options.pairs}
    counter = _ResultProgress(plan.missing(records), progress)
    for named in sets:
        with _opened(options, named, progress) as engines:
            for pair in options.pairs:
                record = records[pair.name]
                todo = plan.todo(pair, record, named)
                if todo:
                    _Work(options, folder, plan, counter).run(pair, named, record, todo, engines())
    for record in records.values():
        record.setdefault("versions", versions())
        folder.write(record)
    evaluation = Evaluation(folder.path, plan.methods, tuple(records.values()), tuple(named.facts() for named in sets))
    progress("draw")
    write_tables(evaluation, options)
    write_pictures(evaluation)
    write_evaluation_page(evaluation)
    return evaluation


class _Plan:
    """Methods by engine set, and which of them a record lacks.

    The affine initialisation and another tool's transform belong to no set: they are scored on the first set on which
    the pair can be prepared.
    """

    def __init__(self, options: EvaluateOptions, sets: tuple[NamedSet, ...]) -> None:
        self._options, self._sets = options, sets
        self._before, self._by_set = {}, {}
        for named in sets:
            before, *self._by_set[named.name] = methods(options.choices, named.engine_set, named.name)
            self._before[named.name] = Method(BEFORE, before.options)
        for named in sets:
            check_choice(named.engine_set, options.backend, options.threads, options.precision)

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods: the affine initialisation, another tool's transform if a pair has one, then set by set."""
        given = [Method(TRANSFORM)] if any(pair.transform for pair in self._options.pairs) else []
        return (self._before[self._sets[0].name], *given, *(m for found in self._by_set.values() for m in found))

    def key(self, record: Record, named: NamedSet, method: Method) -> str:
        """Return the hash of everything that a method's scores of a pair depend on."""
        engines = (self._options.backend, self._options.precision, self._options.threads, named.engine_set.hashes)
        convention = record["choices"].get("convention") if method.name == TRANSFORM else None
        facts = record["key"], engines, method.options and vars(method.options), *filter(None, [convention])
        return sha256_of_facts(facts)

    def todo(self, pair: EvaluationPair, record: Record, named: NamedSet) -> list[Method]:
        """Return the methods that the record lacks or that failed."""
        failed = {trouble["engines"] for trouble in record.get("errors", ())}
        wanted = list(self._by_set[named.name])
        # Methods of no set are due here only if the pair failed on every set before this one.
        if failed.issuperset(other.name for other in self._sets[: self._sets.index(named)]):
            wanted[:0] = [self._before[named.name], *([Method(TRANSFORM)] if pair.transform else [])]
        return [method for method in wanted if not self._done(record, named, method)]

    def later(self, pair: EvaluationPair, record: Record, named: NamedSet) -> int:
        """Return the number of missing results of a pair on the sets after this one."""
        return sum(len(self.todo(pair, record, other)) for other in self._sets[self._sets.index(named) + 1 :])

    def missing(self, records: dict[str, Record]) -> int:
        """Return the number of missing results."""
        pairs = self._options.pairs
        return sum(len(self.todo(pair, records[pair.name], named)) for pair in pairs for named in self._sets)

    def _done(self, record: Record, named: NamedSet, method: Method) -> bool:
        entry = record["methods"].get(method.title, {})
        return "error" not in entry and entry.get("key") == self.key(record, named, method)


class _Work:
    """Work on one pair and one engine set: runs the missing methods and records them."""

    def __init__(self, options: EvaluateOptions, folder: ScoresFolder, plan: _Plan, counter: "_ResultProgress") -> None:
        self._options, self._folder, self._plan, self._counter = options, folder, plan, counter

    def run(
        self, pair: EvaluationPair, named: NamedSet, record: Record, todo: list[Method], engines: OpenEngines
    ) -> None:
        """Run the methods in `todo`; the record is written after each, so that nothing is lost with the process."""
        record["versions"] = versions()
        try:
            ids = label_ids_of(pair, self._options.label_ids)
            start, points_in = self._options.start, self._options.points_in
            scorer = PairScorer(pair, engines, start, ids, points_in, self._counter.stage)
        except Exception as error:  # a failure of one pair must not stop the others
            # Recording the error moves methods of no set to the next set, so `later` differs before and after.
            left = len(todo) + self._plan.later(pair, record, named)
            record.setdefault("errors", []).append({"engines": named.name, **recorded(error)})
            self._folder.write(record)
            self._counter.skip(pair.name, left - self._plan.later(pair, record, named))
            return
        record["engine_sets"][named.name] = scorer.facts
        for method in todo:
            entry = self._entry(method, scorer)
            entry["key"] = self._plan.key(record, named, method)
            record["methods"][method.title] = entry
            self._folder.write(record)
            self._counter.step(f"{pair.name}, {method.title}", entry)

    @staticmethod
    def _entry(method: Method, scorer: PairScorer) -> dict[str, Any]:
        try:
            if method.name == TRANSFORM:
                return scorer.run_transform()
            return {"options": vars(method.options), **scorer.run(method)}
        except Exception as error:
            return recorded(error)


@contextmanager
def _opened(options: EvaluateOptions, named: NamedSet, progress: Progress) -> Iterator[Callable[[], OpenEngines]]:
    """Provide a function that opens the set on its first call; the set is closed at the end of the context."""
    with ExitStack() as stack:

        @cache
        def engines() -> OpenEngines:
            progress(f"open engines {named.name}".rstrip())
            choice = (options.backend, options.threads, options.precision)
            return stack.enter_context(open_set(named.engine_set, *choice, progress=progress))

        yield engines


class _ResultProgress:
    """Progress lines: the current stage, and after each result the number left and the estimated remaining time."""

    def __init__(self, results: int, progress: Progress) -> None:
        self.stage, self._countdown = progress, Countdown(results)

    def step(self, name: str, entry: dict[str, Any]) -> None:
        self._countdown.step()
        ending = "failed" if "error" in entry else f"Dice {entry['dice']:.3f}" if "dice" in entry else "done"
        self.stage(f"{name}: {ending}; {self._rest()}")

    def skip(self, name: str, results: int) -> None:
        self._countdown.step(results, made=False)
        self.stage(f"{name}: failed; {self._rest()}")

    def _rest(self) -> str:
        return ", ".join(filter(None, (f"{self._countdown.left} results left", self._countdown.rest())))
