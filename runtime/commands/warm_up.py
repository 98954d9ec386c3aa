"""`warm-up`: compile the CPU kernels ahead of time."""

import click

from .terminal import one_line_errors


@click.command("warm-up")
@one_line_errors
def warm_up() -> None:
    """Compile the CPU kernels for this machine, once (half a minute).

    Otherwise the first command that needs the kernels compiles them. They are kept in the cache folder, which
    RPNET_CACHE sets, for example to /opt/cache in a container image.
    """
    from ..registration.warmup import main

    main([])
