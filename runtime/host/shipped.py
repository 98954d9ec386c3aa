"""What differs between a clone of the project and the installed package: where engines ship, how to get packages."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_engines() -> Path:
    """Folder of the engine set that ships."""
    inside = PACKAGE / "shipped"
    return inside if inside.is_dir() else PACKAGE.parent / "engines"


def install_command(package: str) -> str:
    """Return the command that installs a missing package."""
    clone = (PACKAGE.parent / "requirements.txt").is_file()
    return "pip install -r requirements.txt" if clone else f"pip install {package}"
