"""Common parts of the commands: options, numbers as options, progress, one-line errors, help by sections."""

import atexit
import contextlib
import functools
import gc
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..host.shipped import install_command, shipped_engines
from ..host.standard_streams import keep_streams_usable
from ..host.stopping import Stopped, asked, exit_code, ignore_signals, raise_on_signals

TRY_LATER = 75  # exit code EX_TEMPFAIL of sysexits.h: a temporary failure
INSTALLED = (sys.executable, "-m", __package__.partition(".")[0])  # command that starts the installed program
IMPLAUSIBLE = 3  # with --strict: the verdict on a registration is "failed"
MEMORY_REMEDY = "close other programs, raise the limit (ulimit -v, the batch system's) or use another computer"

PATH = click.Path(path_type=Path)
ENGINE_DIR = click.option(
    "--engine-dir",
    type=PATH,
    default=shipped_engines(),
    show_default="the shipped one",
    help="Folder of an engine set.",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
NAN = click.option(
    "--nan", type=float, metavar="VALUE", help="Replace NaN by this intensity.  [default: NaN is an error]"
)
QUIET = click.option("--quiet", is_flag=True, help="Print nothing but errors.")


class Numbers(click.ParamType):
    """Comma-separated numbers, as many as one of `counts`; without counts one or more."""

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


class TemporaryFailure(click.ClickException):
    """A failure that may not recur, so that a batch system can try again."""

    exit_code = TRY_LATER


def one_line_errors(command):
    """Report invalid input and errors of the system in one line, with exit code 1, or 75 for temporary failures."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        from ..errors import InputError, refused, system_reason

        try:
            return command(*args, **kwargs)
        except InputError as error:
            raise failure(error) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise click.ClickException(
                f"needs the package {package}, which is not installed; {install_command(package)}"
            ) from None
        except OSError as error:
            raise failure(refused(system_reason(error), error)) from None
        except MemoryError as error:
            raise TemporaryFailure(f"memory ran out ({str(error) or 'none available'}); {MEMORY_REMEDY}") from None
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            raise TemporaryFailure(f"the system allows no further threads; {MEMORY_REMEDY}") from None
        except EOFError as error:
            raise click.ClickException(f"a file ends too early ({error})") from None

    return wrapped


def failure(error: Exception) -> click.ClickException:
    """Return the exception that ends a command with an InputError's line."""
    from ..errors import is_scarcity

    return (TemporaryFailure if is_scarcity(error) else click.ClickException)(str(error))


def exit_code_of_failures(only_scarcity: bool) -> int:
    """Return the exit code of a command some of whose parts failed: 75 if all for lack of resources, else 1."""
    return TRY_LATER if only_scarcity else 1


class StageLine:
    """Display of the current stage: one line that changes on a terminal, one line per stage elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()

    @property
    def changes(self) -> bool:
        """True if each stage replaces the one before it on the screen."""
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
        """Print text on standard output or standard error, after clearing the stage line."""
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
    """An option that belongs to a section of the help."""

    def __init__(self, *args, section: str, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class InSections(click.Command):
    """A command whose help lists its many options by sections."""

    def format_options(self, ctx, formatter) -> None:
        sections: dict[str, list] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class OneLineGroup(click.Group):
    """A group that also reports usage errors (exit code 2) and stop signals (130 or 143) in one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            sys.exit(self._ended(args, prog_name, complete_var, **extra) or 0)
        except click.UsageError as error:
            place = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            click.echo(f"Error: {error.format_message().rstrip('.')}{place}", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort as error:  # click turns KeyboardInterrupt into it
            stopped = error.__cause__ if isinstance(error.__cause__, Stopped) else Stopped(signal.SIGINT)
            click.echo(f"S{str(stopped)[1:]}", err=True)
            sys.exit(exit_code(stopped.number))

    def _ended(self, args: Sequence[str] | None, prog_name: str | None, complete_var: str | None, **extra: Any) -> Any:
        """Run the command; an error after a stop signal, such as in an interrupted import, counts as the stop."""
        try:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except Exception:
            if number := asked():
                raise click.Abort from Stopped(number)
            raise


@dataclass(frozen=True)
class CloneTools:
    """Functions of `train` and `export` that commands use; only a clone of the project has them.

    Attributes:
        export: makes the engine set of a checkpoint (`runtime.workflows.evaluation.options.Export`), quietly.
        torch_contenders: takes benchmark options, and True to time PyTorch too; returns `run_benchmark`'s `others`.
        command: the command that starts the clone's program, as words.
    """

    export: Callable[[Path, Path], None]
    torch_contenders: Callable[[Any, bool], Callable[[bool], Any]]
    command: tuple[str, ...]


def program(commands: Iterable[click.Command], tools: CloneTools | None = None) -> click.Group:
    """Return the command line of these commands; `tools` become its context's object."""

    @click.group(
        cls=OneLineGroup,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    @click.version_option(__version__, message="rpnet %(version)s")
    @click.pass_context
    def main(context: click.Context) -> None:
        """Learned 3-D image registration: RP-Net and IIRP-Net (CVPR 2024) from training to deployment."""
        context.obj = tools
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    for command in commands:
        main.add_command(command)
    return main


def run(group: click.Group, name: str) -> None:
    """Run the command line as the main program of this process."""
    atexit.register(gc.freeze)  # no garbage collection at exit, which takes 0.2 s
    keep_streams_usable()
    raise_on_signals()
    try:
        group.main(prog_name=name)
    finally:
        ignore_signals()
