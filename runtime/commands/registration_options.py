"""Options that several commands share: how a pair is registered, and on which engines."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .terminal import NAN, Numbers

if TYPE_CHECKING:
    from ..registration.output.folder import Outputs

Decorator = Callable[[Any], Any]

# Fields of `runtime.registration.options.Options`.
REGISTRATION: tuple[Decorator, ...] = (
    click.option(
        "--affine",
        default="auto",
        show_default=True,
        metavar="auto|affine|rigid|none|FILE[,inverse]",
        help="auto: the best of headers, centres of mass, rigid and affine. affine, rigid: the result of these steps. "
        "none: trust the headers. Or a transform, fixed to moving, that `apply` reads (of a field, its affine fit).",
    ),
    click.option(
        "--convention", default="auto", show_default=True, help="Convention of a FILE that states none, such as fsl."
    ),
    click.option(
        "--volume-factor",
        type=Numbers(float, 2),
        default=(0.3, 3.0),
        metavar="LOW,HIGH",
        help="Limits of a plausible affine; wider for children and animals.  [default: 0.3,3]",
    ),
    click.option(
        "--schedule",
        default="iterstop",
        show_default=True,
        help="Stop rules iterstop, tci, thrift; fixed iterations a,b,c,d at levels 4,3,2,1 (1,1,1,1 is RP-Net); "
        "cascade:t is RP-Net t times.",
    ),
    click.option(
        "--delta",
        type=Numbers(float, 1, 4),
        metavar="D[,D,D,D]",
        help="Smallest improvement, one value or four (levels 4,3,2,1).  [default: the engine set's, 0.005 for ncc]",
    ),
    click.option(
        "--stability",
        type=Numbers(float, 1, 4),
        metavar="S[,S,S,S]",
        help="For tci: largest change of the similarity that counts as stable.  [default: 0.02 for ncc]",
    ),
    click.option(
        "--on-stop",
        type=click.Choice(["keep", "revert"]),
        help="For iterstop: keep a candidate that fails the test (released code), or undo it.  [default: keep]",
    ),
    click.option(
        "--similarity", type=click.Choice(["ncc", "lncc", "mse"]), help="Watched by stop rules.  [default: ncc]"
    ),
    click.option(
        "--max-iterations", type=Numbers(int, 1, 4), metavar="N[,N,N,N]", help="Limit per level.  [default: 10]"
    ),
    click.option(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="Smooth every residual flow, SIGMA in voxels, where the fixed image has no edges: fewer folds; 1.5 is "
        "recommended.  [default: 0, none]",
    ),
    click.option(
        "--window",
        type=Numbers(float, 2),
        metavar="LOW,HIGH",
        help="Intensities mapped to 0..1, for CT, e.g. -200,300.",
    ),
    NAN,
)
# Arguments of `runtime.registration.batch.files.EngineChoice`, besides the folder.
ENGINES: tuple[Decorator, ...] = (
    click.option(
        "--backend",
        type=click.Choice(["auto", "tensorrt-rtx", "tensorrt", "cuda", "native", "openvino", "onnxruntime"]),
        default="auto",
        show_default=True,
        help="Library that runs the engines; the first three need an NVIDIA GPU and requirements-gpu.txt.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
        default="auto",
        show_default=True,
        help="Precision of the engines. auto: fp16 for TensorRT, fp32 otherwise.",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads of engines and kernels.  [default: all cores]"
    ),
)

# What `outputs_of` takes.
OUTPUTS: tuple[Decorator, ...] = (
    click.option(
        "--write",
        default="itk",
        show_default=True,
        metavar="NAME[,NAME...]",
        help="Conventions of transform files: itk (ANTs, SimpleITK), freesurfer, fsl, learn2reg, h5 (ITK composite).",
    ),
    click.option(
        "--outputs",
        metavar="NAME[,NAME...]",
        help="Files to write: warped, labels, warped_fixed, warp, inverse, affine, jacobian, preview, report (page). "
        "report.json is always written; what no file needs is not computed.  [default: all]",
    ),
    click.option(
        "--compact",
        is_flag=True,
        help="Store transforms and Jacobian rounded, as float32 that any tool reads, in about a quarter of the space: "
        "every point within 0.03 mm (else 0.01), every determinant within 0.2 %.",
    ),
    click.option("--forward-only", is_flag=True, help="Skip the inverse transform and the fixed scan warped by it."),
    click.option(
        "--report/--no-report", default=True, show_default=True, help="Write report.html, to look at in a browser."
    ),
    click.option(
        "--report-full", is_flag=True, help="Keep the volumes in report.html at the network's resolution: 8 MB."
    ),
)


def with_options(*groups: tuple[Decorator, ...]) -> Decorator:
    """Return a decorator that gives a command these groups of options, in their order in the help."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def outputs_of(
    write: str, outputs: str | None, compact: bool, forward_only: bool, report: bool, report_full: bool
) -> "Outputs":
    """Return the files to write that the options of `OUTPUTS` ask for; InputError if they contradict one another."""
    from ..registration.output.folder import Outputs

    kinds = None if outputs is None else _names(outputs)
    return Outputs(_names(write), not forward_only, report or report_full, report_full, kinds, compact)


def _names(text: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def registration_options(words: list[str], argument: str) -> dict[str, Any]:
    """Return the fields of `Options` that words on a command line give, and no others.

    Args:
        words: such as ["--smooth", "1.5"].
        argument: where they come from, for messages.

    Raises:
        InputError: an unknown option or an invalid value.
    """
    from ..errors import InputError

    @click.command(add_help_option=False)
    @with_options(REGISTRATION)
    def none(**_: Any) -> None:
        pass

    try:
        with none.make_context("options", list(words)) as context:
            source = click.core.ParameterSource.COMMANDLINE
            return {
                name: value for name, value in context.params.items() if context.get_parameter_source(name) == source
            }
    except click.UsageError as error:
        raise InputError(f"{argument}: {error.format_message().rstrip('.')}") from None
