"""Commands that need only `runtime`: each parses its options, calls one function, and prints."""

from .benchmark import benchmark
from .cohort import cohort, pairs
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .machine import build, warm_up
from .prepare import prepare
from .register import register
from .report import report
from .transforms import apply, compose, convert, invert, jacobian

COMMANDS = (
    register,
    cohort,
    pairs,
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
