"""Commands that need only `runtime`: each parses its options, calls one function, and prints."""

from .benchmark import benchmark
from .build import build
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .prepare import prepare
from .register import register
from .report import report
from .transforms import apply, compose, convert, invert, jacobian
from .warm_up import warm_up

COMMANDS = (
    register,
    doctor,
    report,
    apply,
    compose,
    invert,
    convert,
    jacobian,
    evaluate,
    build,
    prepare,
    benchmark,
    demo,
    warm_up,
)
