"""Worker processes: each holds one object and answers calls of its methods."""

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
    """An object in a new interpreter; a context manager, whose exit ends the process.

    Args:
        target: a picklable object; it is sent to the process, and its methods are called there.
        name: name in messages.
        environment: variables set for the process in addition to this one's, before anything is imported.
        progress: receives what the object passes, during a call, to its attribute `progress`, if it has one.
    """

    def __init__(
        self, target: Any, name: str, environment: Mapping[str, str] | None = None, progress: Progress = silent
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self._progress = name, progress
        self._connection, theirs = context.Pipe()
        # The target is sent as bytes, so that errors of its imports are raised in `_serve`, which can answer them.
        self._process = context.Process(target=_serve, args=(theirs, pickle.dumps(target)), daemon=False)
        with _environment(environment or {}):
            self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Return the result of ``target.method(*arguments)``.

        Raises:
            InputError: as raised there; also, in one line, any other error raised there, or the end of the process.
        """
        try:
            self._connection.send((method, arguments))
            kind, value = self._connection.recv()
            while kind == "progress":
                self._progress(f"{self.name}: {value}")
                kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(CLOSING_SECONDS)
            raise InputError(f"benchmark: {self.name} {_ending(self._process.exitcode)}") from None
        if kind == "result":
            return value
        raise InputError(value if kind == "input error" else f"benchmark: {self.name} failed in {method}: {value}")

    def close(self) -> None:
        """End the process; it is terminated if it has not ended after `CLOSING_SECONDS`."""
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
    """Call ``target.method(*arguments)`` in its own process, whose memory and threads are released afterwards."""
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
    """Answer calls in the worker process until the connection is closed; then close the object."""
    held: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while True:
            method, arguments = connection.recv()
            try:
                if held is None:
                    held = pickle.loads(target)
                    if hasattr(held, "progress"):
                        held.progress = lambda text: connection.send(("progress", text))
                answer = "result", getattr(held, method)(*arguments)
            except InputError as error:
                answer = "input error", str(error)
            except Exception as error:  # any error of a library is reported in one line
                answer = "error", " ".join(f"{type(error).__name__}: {error}".split())
            connection.send(answer)
    if hasattr(held, "close"):
        held.close()
