"""What the commands have in common: options, numbers as options, progress, errors of one line, help by sections."""

import contextlib
import functools
import shutil
import sys
from pathlib import Path

import click

PATH = click.Path(path_type=Path)
ENGINE_DIR = click.option(
    "--engine-dir",
    type=PATH,
    default=Path(__file__).resolve().parent.parent / "engines",
    show_default="engines/ beside cli.py",
    help="Folder of an engine set.",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
NAN = click.option("--nan", type=float, metavar="VALUE", help="Take NaN for this intensity.  [default: refuse NaN]")
QUIET = click.option("--quiet", is_flag=True, help="Print nothing but errors.")


class Numbers(click.ParamType):
    """Comma-separated numbers, so many as `counts` allows; without counts one or more."""

    def __init__(self, kind: type, *counts: int) -> None:
        self.kind, self.counts = kind, counts
        self.name = ",".join([kind.__name__] * counts[-1]) if counts else f"{kind.__name__}[,...]"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or (self.counts and len(numbers) not in self.counts):
            many = " or ".join(map(str, self.counts)) or "one or more"
            self.fail(f"got {value!r}, expected {many} comma-separated {self.kind.__name__} value(s)", param, ctx)
        return numbers


def one_line_errors(command):
    """Turns bad input, and what the system refuses, into one line and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        from runtime.geometry.errors import InputError, system_reason

        try:
            return command(*args, **kwargs)
        except InputError as error:
            raise click.ClickException(str(error)) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise click.ClickException(
                f"needs the package {package}, which is not installed; pip install -r requirements.txt"
            ) from None
        except BrokenPipeError:  # whoever read the output has left: click ends quietly
            raise
        except OSError as error:
            raise click.ClickException(system_reason(error)) from None

    return wrapped


class StageLine:
    """Shows which stage runs: one line that changes on a terminal, one line per stage elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()

    @property
    def changes(self) -> bool:
        """Whether what is shown is replaced by what comes next."""
        return self._terminal

    def __call__(self, stage: str) -> None:
        if self._quiet:
            return
        if self._terminal:
            room = shutil.get_terminal_size().columns - len(" ...") - 1
            click.echo(f"\r\033[K{stage[:room]} ...", nl=False, err=True)
        elif not stage.startswith(("level", "pass", "round")):
            click.echo(f"{stage} ...", err=True)

    def print(self, text: str, error: bool = False) -> None:
        """Text on standard output or standard error, after the line is wiped."""
        self._wipe()
        click.echo(text, err=error)

    def _wipe(self) -> None:
        if self._terminal and not self._quiet:
            click.echo("\r\033[K", nl=False, err=True)

    @contextlib.contextmanager
    def shown(self):
        try:
            yield self
        finally:
            self._wipe()


class SectionOption(click.Option):
    """An option with a section of the help it belongs to."""

    def __init__(self, *args, section: str, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class InSections(click.Command):
    """A command with so many options that its help lists them by sections."""

    def format_options(self, ctx, formatter) -> None:
        sections: dict[str, list] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class OneLineGroup(click.Group):
    """A command line that cannot be parsed is one line too, exit code 2."""

    def main(self, *args, standalone_mode: bool = True, **kwargs):
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        try:
            sys.exit(super().main(*args, standalone_mode=False, **kwargs) or 0)
        except click.UsageError as error:
            place = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            click.echo(f"Error: {error.format_message().rstrip('.')}{place}", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted", err=True)
            sys.exit(1)
