"""The installed command line, `rpnet` or `python -m rpnet`: all commands except training and export."""

from .host.stopping import end_on_signals


def main() -> None:
    """Run the command line."""
    end_on_signals()  # until `run` handles signals: the imports below take a moment
    from .commands import COMMANDS
    from .commands.terminal import program, run

    run(program(COMMANDS), "rpnet")


if __name__ == "__main__":
    main()
