"""`build` and `warm-up`: what is compiled for a machine, ahead of time."""

import click

from .terminal import ENGINE_DIR, QUIET, Numbers, one_line_errors


@click.command()
@ENGINE_DIR
@click.option("--target", type=click.Choice(["tensorrt-rtx", "tensorrt"]), required=True, help="Library to run them.")
@click.option("--sm", "sms", metavar="SM[,SM...]", help="Compute capabilities of GPUs, such as 75,80,86,89,120.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp16", "fp32", "all"]),
    multiple=True,
    help="May be repeated.  [default: all for tensorrt-rtx, fp16 for tensorrt]",
)
@click.option("--shape", type=Numbers(int, 3), help="One image size I,J,K, instead of --shapes.")
@click.option("--shapes", help="Smallest, usual and largest.  [default: '16,16,16 160,192,160 256,256,256']")
@QUIET
@one_line_errors
def build(engine_dir, target, sms, precisions, shape, shapes, quiet) -> None:
    """Build an engine set's plans for NVIDIA GPUs, in its folder plans/.

    tensorrt-rtx needs no GPU, and one plan serves all of --sm (default: all known ones); tensorrt builds for the GPU in
    this machine, which may take minutes. `register` and `benchmark` build missing plans themselves.
    """
    if shape and shapes:
        raise click.UsageError("give either --shape or --shapes")
    from ..backends.networks.tensorrt.build import (
        BuildOptions,
        build_plans,
        parse_precisions,
        parse_profile,
        parse_sms,
    )

    options = BuildOptions(target, parse_sms(sms), parse_precisions(precisions), parse_profile(shape or shapes))
    build_plans(engine_dir, options, (lambda line: None) if quiet else click.echo)


@click.command("warm-up")
@one_line_errors
def warm_up() -> None:
    """Compile the CPU kernels for this machine, once (half a minute).

    Otherwise the first command that needs the kernels compiles them. They are kept in the cache folder, which
    RPNET_CACHE sets, for example to /opt/cache in a container image.
    """
    from ..registration.warmup import main

    main([])
