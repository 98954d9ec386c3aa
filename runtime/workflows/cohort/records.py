"""Records of a cohort's pairs: what was done, what failed and why, and who is at work on what.

A pair has a folder ``pairs/ID`` and a record ``records/ID.json``. The record is written when work on the pair begins,
and replaced when it ends, after the pair's files are complete. A record of begun work whose process is gone tells that
the process died over it.
"""

import datetime
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, recorded
from ...host.files.folder_lock import folder_lock
from ...host.files.hashes import sha256_of_facts, sha256_of_file
from ...host.files.plain_json import as_json, read_record
from ...host.files.whole_files import write_text
from ...registration.output.folder import REPORT, REPORT_FORMAT
from .table import CohortRow

FORMAT, VERSION = "rpnet-cohort-pair", 1
PAIRS, RECORDS = "pairs", "records"
RUNNING, DONE, FAILED = "running", "done", "failed"
MOST_ATTEMPTS = 3  # deaths of a process over one pair, after which the pair counts as failed
JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


@dataclass(frozen=True)
class Claim:
    """A pair that this process holds and has to register.

    Attributes:
        row: the pair.
        key: hash of everything that its result depends on.
        attempt: number of this attempt, from 1.
        held: releases the pair when it is closed.
    """

    row: CohortRow
    key: str
    attempt: int
    held: ExitStack


class CohortFolder:
    """The folder of a cohort.

    Args:
        path: of the folder.
        facts: everything that all results depend on besides their inputs: engines, options, outputs.
        retry_failed: True to try pairs again that failed, even if a later attempt cannot be expected to succeed.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], retry_failed: bool = False) -> None:
        self.path, self.facts, self.retry_failed = path, facts, retry_failed

    def result(self, row: CohortRow) -> Path:
        """Return the folder of a pair's files."""
        return self.path / PAIRS / row.id

    def record(self, row: CohortRow) -> dict[str, Any]:
        """Return the record of a pair; empty if there is none."""
        return read_record(self._record_path(row), FORMAT, VERSION)

    def claim(self, row: CohortRow, special: Mapping[str, Any]) -> Claim | None:
        """Take a pair, unless it is finished or another process holds it.

        Args:
            row: the pair.
            special: what its result depends on besides what all results do.

        Returns:
            The claim; None if there is nothing to do: the record tells why.

        Raises:
            ScarceError: another process is at work on the pair.
        """
        with ExitStack() as stack:
            stack.enter_context(folder_lock(self.result(row)))
            record = self.record(row)
            try:
                key = self._key(row, special)
            except (InputError, OSError) as error:
                found = {"state": FAILED, **recorded(error)}
                if record.get("error") != found["error"]:
                    self._write(row, "", 1, found)
                return None
            same = record.get("key") == key
            if same and self._is_final(row, record):
                return None
            died = record.get("attempt", 0) if same and record.get("state") == RUNNING else 0
            if died >= MOST_ATTEMPTS:
                why = record.get("stage") or "its process was killed, ran out of memory or crashed"
                words = f"{why}; {died} attempts"
                self._write(row, key, died, {"state": FAILED, "error": words, "scarce": False})
                return None
            return Claim(row, key, died + 1, stack.pop_all())
        return None

    def begin(self, claim: Claim) -> None:
        """Record that work on a pair begins."""
        self._write(claim.row, claim.key, claim.attempt, {"state": RUNNING})

    def note(self, claim: Claim, words: str) -> None:
        """Record why the process that works on a pair is about to end."""
        self._write(claim.row, claim.key, claim.attempt, {"state": RUNNING, "stage": words})

    def finish(self, claim: Claim, outcome: Mapping[str, Any]) -> None:
        """Record how a pair ended: its state and figures, or its error."""
        self._write(claim.row, claim.key, claim.attempt, outcome)

    def _is_final(self, row: CohortRow, record: Mapping[str, Any]) -> bool:
        if record.get("state") == DONE:
            return bool(read_record(self.result(row) / REPORT, REPORT_FORMAT))
        return record.get("state") == FAILED and not record.get("scarce") and not self.retry_failed

    def _key(self, row: CohortRow, special: Mapping[str, Any]) -> str:
        hashes = {}
        for name, path in row.files().items():
            if not path.is_file():
                raise InputError(f"--{name.replace('_', '-')}: there is no file {path}")
            hashes[name] = sha256_of_file(path)
        return sha256_of_facts([VERSION, hashes, dict(self.facts), dict(special)])

    def _record_path(self, row: CohortRow) -> Path:
        return self.path / RECORDS / f"{row.id}.json"

    def _write(self, row: CohortRow, key: str, attempt: int, facts: Mapping[str, Any]) -> None:
        path = self._record_path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        job = {name: value for name in JOB_VARIABLES if (value := os.environ.get(name))}
        record = {
            "format": FORMAT,
            "version": VERSION,
            "id": row.id,
            "key": key,
            "attempt": attempt,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "job": job,
            "subject": row.subject,
            "session": row.session,
            "group": row.group,
            "inputs": {name: str(path) for name, path in row.files().items()},
            **facts,
        }
        write_text(path, as_json(record))
