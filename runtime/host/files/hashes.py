"""SHA-256 hashes, in hexadecimal digits, that identify files, facts and compiled code."""

import hashlib
import json
from os import PathLike
from typing import Any


def sha256(content: bytes) -> str:
    """Return the hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | PathLike[str]) -> str:
    """Return the hash of a file's bytes, read in pieces; OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_facts(facts: Any) -> str:
    """Return the hash of plain facts as JSON with sorted keys: the same in every run and on every machine."""
    return sha256(json.dumps(facts, sort_keys=True).encode())


def short_key(*facts: Any) -> str:
    """Return the first 16 digits of the hash of the facts' `repr`, which name a file in this machine's cache."""
    return sha256(repr(facts).encode())[:16]
