"""`benchmark`: the accuracy gate, then latency and memory."""

import click

from .terminal import ENGINE_DIR, INSTALLED, PATH, QUIET, Numbers, StageLine, one_line_errors


@click.command()
@ENGINE_DIR
@click.option("--fixed", type=PATH, help="Two scans instead of a generated pair, preprocessed as by `register`.")
@click.option("--moving", type=PATH, help="See --fixed.")
@click.option("--shape", type=Numbers(int, 3), help="I,J,K of the generated pair.  [default: 160,192,160]")
@click.option("--crop-to", type=Numbers(int, 3), help="I,J,K to which the scans are then cropped or padded.")
@click.option("--shapes", help="Time against volume instead: shapes such as '64,64,64 96,96,96', or default.")
@click.option("--backend", "backends", multiple=True, default=("auto",), show_default=True, help="One, several or all.")
@click.option("--precision", "precisions", multiple=True, default=("auto",), show_default=True, help="As --backend.")
@click.option("--against", type=click.Choice(["torch"]), help="Also time the eager PyTorch loop, on the same device.")
@click.option("--schedule", help="As for `register`.  [default: iterstop; with --shapes 1,1,1,1]")
@click.option("--runs", type=click.IntRange(min=1), help="Timed rounds.  [default: 10; all on a GPU 40]")
@click.option("--warmup", type=click.IntRange(min=0), help="Untimed rounds first.  [default: 1; all on a GPU 3]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of engines and kernels.  [default: all cores]")
@click.option("--no-files", is_flag=True, help="Skip the whole registrations from file to file.")
@click.option("--no-start-up", is_flag=True, help="Skip the start with an empty cache (half a minute of compilation).")
@click.option("--json", type=PATH, help="Write everything printed and all raw samples to this file.")
@click.option("--plot", type=PATH, help="Plot the results: .png, .svg or .pdf (needs matplotlib).")
@click.option("--html", type=PATH, help="Write a page for a browser: stages, floors, percentiles (needs matplotlib).")
@click.option(
    "--compare",
    type=PATH,
    multiple=True,
    help="Measure nothing; show these records of --json side by side in --html. May be repeated.",
)
@QUIET
@click.pass_obj
@one_line_errors
def benchmark(
    tools, against, shapes, backends, precisions, no_files, no_start_up, compare, quiet, threads, **options
) -> None:
    """Check that the engines are correct, then measure latency and memory on this machine.

    Nothing is timed before each contender's flow agrees with that of the PyTorch reference (ONNX Runtime's if torch is
    not installed). Contenders run in separate processes and take turns. --backend and --precision take several names,
    comma-separated or repeated.

    With an engine on a GPU, --against torch is PyTorch on that GPU: in fp32 without TF32, and with autocast to fp16
    and channels-last memory; this requires PyTorch with CUDA. GPU times are measured with CUDA events.
    """
    from ..workflows.benchmark.report.page import check_page, read_record_of_benchmark, write_benchmark_page

    if options["html"]:
        check_page(options["html"])
    if compare:
        if not options["html"]:
            raise click.UsageError("--compare needs --html, the page to write")
        write_benchmark_page(options["html"], [read_record_of_benchmark(path) for path in compare])
        return
    from ..workflows.benchmark import BenchmarkOptions, parse_names, parse_shapes, run_benchmark

    options = BenchmarkOptions(
        **options,
        threads=threads,
        backends=parse_names(backends),
        precisions=parse_names(precisions),
        shapes=parse_shapes(shapes) if shapes else (),
        files=not no_files,
        start_up=not no_start_up,
    )
    if against and tools is None:
        raise click.UsageError("--against torch needs a clone of the project: python cli.py benchmark")
    others = {"others": tools.torch_contenders(options, bool(against))} if tools else {}
    with StageLine(quiet).shown() as stages:
        run_benchmark(
            options,
            **others,
            command=tools.command if tools else INSTALLED,
            echo=(lambda text: None) if quiet else lambda text: stages.print(f"{text}\n"),
            progress=stages,
        )
