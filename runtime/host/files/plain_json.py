"""Facts as plain JSON, with null for numbers that are not finite, which JSON does not allow; records read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Convert mappings, sequences, arrays and paths to dictionaries, lists, numbers, strings and None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def as_json(value: Any) -> str:
    """Return a value as the text of a JSON file."""
    return json.dumps(plain(value), indent=2) + "\n"


def read_record(path: Path, format: str, version: int | None = None) -> dict[str, Any]:
    """Read a JSON file of this format and version (None: any); return an empty dictionary if there is no such file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or record.get("format") != format:
        return {}
    return record if version in (None, record.get("version")) else {}
