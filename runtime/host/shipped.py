"""The engine set that ships: beside `cli.py` in a clone of the project, inside the package where it is installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_engines() -> Path:
    """Folder of the engine set that ships."""
    inside = PACKAGE / "shipped"
    return inside if inside.is_dir() else PACKAGE.parent / "engines"
