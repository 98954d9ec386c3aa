"""Methods to compare: schedules of engine sets, the affine initialisation alone, and greedy."""

from dataclasses import dataclass

from runtime.errors import InputError
from runtime.registration.options import Options

BEFORE, GREEDY_AFFINE, GREEDY = "affine", "greedy affine", "greedy"


@dataclass(frozen=True)
class Method:
    """A registration method; options is None for greedy, engines is empty for methods that need none."""

    engines: str
    name: str
    options: Options | None = None

    @property
    def title(self) -> str:
        return f"{self.engines}: {self.name}" if self.engines else self.name


def parse_options(text: str) -> Options:
    """Parse the options of ``schedule:option=value:...``, such as ``iterstop:delta=0.001``.

    Raises:
        InputError: an option that `Options` does not have, or not a number where one is expected.
    """
    schedule, *settings = text.split(":")
    given = dict(setting.partition("=")[::2] for setting in settings)
    known = Options.__dataclass_fields__
    for name, value in given.items():
        if name not in known or name in ("schedule", "affine"):
            raise InputError(f"--schedule: got {name!r} in {text!r}, expected options of `register`")
        given[name] = _value(value)
    return Options(schedule=schedule, **given)


def _value(text: str) -> str | float | int:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
