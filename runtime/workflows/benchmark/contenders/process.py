"""Processes of their own: a worker holds one object and answers calls of its methods."""

import contextlib
import multiprocessing
import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from ....errors import InputError
from ....host.progress import Progress, silent

CLOSING_SECONDS = 10.0


class Worker:
    """An object living in a new interpreter. A context manager; the process ends with it.

    Args:
        target: a picklable object; it travels to the process, and its methods are called there.
        name: who it is, for messages.
        environment: variables set for the process on top of this one's, before anything is imported.
        progress: told what the object says, during a call, to its attribute `tell`, where it has one.
    """

    def __init__(
        self, target: Any, name: str, environment: Mapping[str, str] | None = None, progress: Progress = silent
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self._progress = name, progress
        self._connection, theirs = context.Pipe()
        # The target travels as bytes: what it imports is imported where errors can be answered.
        self._process = context.Process(target=_serve, args=(theirs, pickle.dumps(target)), daemon=False)
        with _environment(environment or {}):
            self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of ``target.method(*arguments)``.

        Raises:
            InputError: as raised there, or: anything else that was raised there, or the end of the process, in a line.
        """
        try:
            self._connection.send((method, arguments))
            kind, value = self._connection.recv()
            while kind == "told":
                self._progress(f"{self.name}: {value}")
                kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(CLOSING_SECONDS)
            raise InputError(f"benchmark: {self.name} {_ending(self._process.exitcode)}") from None
        if kind == "result":
            return value
        raise InputError(value if kind == "input error" else f"benchmark: {self.name} failed in {method}: {value}")

    def close(self) -> None:
        """Ends the process; waits for it a little."""
        self._connection.close()
        self._process.join(CLOSING_SECONDS)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def call_once(target: Any, name: str, method: str, *arguments: Any, environment: Mapping[str, str] | None = None):
    """``target.method(*arguments)`` in a process of its own, whose memory and threads are gone afterwards."""
    with Worker(target, name, environment) as worker:
        return worker.call(method, *arguments)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code}" + ("; was there enough memory?" if code == -9 else "")
    return f"ended unexpectedly (exit code {code})"


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Any, target: bytes) -> None:
    """The worker's side: answers until the other side is gone; then closes what it holds."""
    held = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while True:
            method, arguments = connection.recv()
            try:
                if held is None:
                    held = pickle.loads(target)
                    if hasattr(held, "tell"):
                        held.tell = lambda text: connection.send(("told", text))
                answer = "result", getattr(held, method)(*arguments)
            except InputError as error:
                answer = "input error", str(error)
            except Exception as error:  # whatever a library raises is told to the user in one line
                answer = "error", " ".join(f"{type(error).__name__}: {error}".split())
            connection.send(answer)
    if hasattr(held, "close"):
        held.close()
