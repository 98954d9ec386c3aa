"""`warm-up`: compile the CPU kernels ahead of time."""

import click

from .terminal import one_line_errors


@click.command("warm-up")
@one_line_errors
def warm_up() -> None:
    """Compile the CPU kernels for this machine, once (half a minute).

    Otherwise the first command that needs them compiles them. They are kept in the cache folder; for a container image,
    set it with RPNET_CACHE=/opt/cache, for instance.
    """
    from ..registration.warmup import main

    main([])
