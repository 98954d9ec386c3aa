"""Differences between a clone of the project and the installed package: shipped engines, installing of packages."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_engines() -> Path:
    """Return the folder of the shipped engine set."""
    inside = PACKAGE / "shipped"
    return inside if inside.is_dir() else PACKAGE.parent / "engines"


def install_command(package: str) -> str:
    """Return the command that installs a missing package."""
    clone = (PACKAGE.parent / "requirements.txt").is_file()
    return "pip install -r requirements.txt" if clone else f"pip install {package}"
