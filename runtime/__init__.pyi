"""Names of the package for editors and type checkers; `__init__.py` loads them when they are first used."""

from .errors import InputError as InputError
from .errors import NotAvailableError as NotAvailableError
from .errors import ScarceError as ScarceError
from .geometry.grid import Grid as Grid
from .geometry.jacobian import (
    folded_share as folded_share,
)
from .geometry.jacobian import (
    jacobian_of_displacement as jacobian_of_displacement,
)
from .geometry.jacobian import (
    sd_log_jacobian as sd_log_jacobian,
)
from .geometry.transform import (
    AffineTransform as AffineTransform,
)
from .geometry.transform import (
    SpatialTransform as SpatialTransform,
)
from .geometry.transform import (
    Transform as Transform,
)
from .images.formats.nifti_writer import write_volume as write_volume
from .images.volume import (
    Source as Source,
)
from .images.volume import (
    Volume as Volume,
)
from .images.volume import (
    read_labels as read_labels,
)
from .images.volume import (
    read_volume as read_volume,
)
from .loop.schedules import Schedule as Schedule
from .loop.stop_rules import parse_schedule as parse_schedule
from .loop.trace import Iterations as Iterations
from .registration.arrays import register_arrays as register_arrays
from .registration.batch.concurrent import register_many as register_many
from .registration.engines import (
    Engines as Engines,
)
from .registration.engines import (
    PairOutcome as PairOutcome,
)
from .registration.engines import (
    ScanPair as ScanPair,
)
from .registration.engines import (
    open_engines as open_engines,
)
from .registration.options import Options as Options
from .registration.output.folder import Outputs as Outputs
from .registration.quality.figures import Figures as Figures
from .registration.quality.verdict import Verdict as Verdict
from .registration.scans import (
    FixedScan as FixedScan,
)
from .registration.scans import (
    ReadyPair as ReadyPair,
)
from .registration.scans import (
    Registration as Registration,
)
from .registration.scans import (
    register as register,
)
from .transforms import (
    Link as Link,
)
from .transforms import (
    Space as Space,
)
from .transforms import (
    TransformFile as TransformFile,
)
from .transforms import (
    read_transform as read_transform,
)
from .transforms import (
    write_transform as write_transform,
)
from .transforms.apply import (
    Applied as Applied,
)
from .transforms.apply import (
    apply_image as apply_image,
)
from .transforms.apply import (
    apply_labels as apply_labels,
)
from .transforms.apply import (
    apply_points as apply_points,
)
from .transforms.chain import Route as Route
from .transforms.operations import compose as compose
from .transforms.operations import invert as invert
from .transforms.operations import jacobian as jacobian
from .workflows.checkup.examine import Checkup as Checkup
from .workflows.checkup.examine import examine as examine
from .workflows.evaluation.options import EvaluateOptions as EvaluateOptions
from .workflows.evaluation.results.evaluation import Evaluation as Evaluation
from .workflows.evaluation.run import evaluate as evaluate

__version__: str
