"""Recipe files: the options of a training run in TOML, named as on the command line without the two dashes."""

import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from runtime.errors import InputError, first_line
from runtime.host.files.regular_files import require_file
from train.options import CHOICES, FitOptions

LARGEST = 1 << 20  # bytes of a recipe
# Types by Python name: the options of a run, and `generated`, which on the command line stands for no list of data.
_HINTS: dict[str, Any] = get_type_hints(FitOptions) | {"generated": bool}
_KINDS = {name: get_args(hint)[0] if isinstance(hint, UnionType) else hint for name, hint in _HINTS.items()}
_IN_TOML = {float: (float, int), Path: (str,)}  # types in TOML, where they differ from the option's type
_NAMES = {str: "a string", Path: "a path as a string", int: "a whole number", float: "a number", bool: "true or false"}


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the options in a recipe file by Python name: `learning_rate` for `learning-rate`, a tuple for a list.

    Paths in it are relative to the current folder, as on the command line.

    Raises:
        InputError: the file cannot be read, or has an unknown option or a value of the wrong type.
    """
    require_file(path, "recipe", LARGEST)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"recipe: {path} cannot be read ({first_line(error)}); give a TOML file of options") from None
    return {key.replace("-", "_"): _value(path, key, found) for key, found in content.items()}


def _value(path: Path, key: str, found: Any) -> Any:
    kind, choices = _KINDS.get(key.replace("-", "_")), CHOICES.get(key.replace("-", "_"))
    if kind is None or "_" in key:
        raise InputError(f"recipe: {path} has {key}, which is not an option of train; see train --help")
    if not _fits(kind, found) or (choices and found not in choices):
        expected = f"one of {', '.join(choices)}" if choices else _described(kind)
        raise InputError(f"recipe: {path} has {key} = {found!r}, expected {expected}; correct it")
    return tuple(found) if isinstance(found, list) else found


def _fits(kind: Any, found: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(found, list) and len(found) == len(get_args(kind)) and all(type(one) is int for one in found)
    return type(found) in _IN_TOML.get(kind, (kind,))  # `type`, because isinstance(True, int) holds


def _described(kind: Any) -> str:
    return f"a list of {len(get_args(kind))} whole numbers" if get_origin(kind) is tuple else _NAMES[kind]
