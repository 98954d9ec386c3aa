"""Hashes by which files, facts and what is compiled of them are known again: SHA-256, in hexadecimal digits."""

import hashlib
import json
from os import PathLike
from typing import Any


def sha256(content: bytes) -> str:
    """Hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | PathLike) -> str:
    """Hash of a file's bytes, read in pieces; OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_facts(facts: Any) -> str:
    """Hash of plain facts, as JSON with sorted keys: the same from run to run, and on every computer."""
    return sha256(json.dumps(facts, sort_keys=True).encode())


def short_key(*facts: Any) -> str:
    """The first 16 digits of the hash of facts' representations: name of a file in the cache of this computer."""
    return sha256(repr(facts).encode())[:16]
