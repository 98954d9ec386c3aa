"""`warm-up`: compile the CPU kernels ahead of time."""

import click

from .terminal import one_line_errors


@click.command("warm-up")
@one_line_errors
def warm_up() -> None:
    """Compile the CPU kernels for this computer, once (half a minute).

    The first command that needs them does it otherwise. They are kept in the cache folder; a container's image is
    built with RPNET_CACHE=/opt/cache, for instance.
    """
    from ..registration.warmup import main

    main([])
