"""Learned 3-D medical image registration: RP-Net and IIRP-Net, without PyTorch.

    import rpnet as runtime  # where it is installed; `import runtime` in a clone

    with runtime.open_engines() as engines:
        result = engines.register("fixed.nii.gz", "moving.nii.gz")
        result.save("aligned/")

`Engines.prepare_fixed` is for many moving scans with one fixed scan, `Engines.register_pairs` for a list of pairs,
`Engines.register_arrays` for images that are already preprocessed, also in a GPU's memory.

Names are loaded on first use, so that importing the package takes almost no time; `__init__.pyi` lists them for editors
and type checkers.
"""

import importlib

_HOME = {
    "errors": ("InputError", "NotAvailableError", "ScarceError"),
    "geometry.grid": ("Grid",),
    "geometry.jacobian": ("folded_share", "jacobian_of_displacement", "sd_log_jacobian"),
    "geometry.transform": ("AffineTransform", "SpatialTransform", "Transform"),
    "images.formats.nifti_writer": ("write_volume",),
    "images.volume": ("Source", "Volume", "read_labels", "read_volume"),
    "loop.schedules": ("Schedule",),
    "loop.stop_rules": ("parse_schedule",),
    "loop.trace": ("Iterations",),
    "registration.arrays": ("register_arrays",),
    "registration.batch.concurrent": ("register_many",),
    "registration.engines": ("Engines", "PairOutcome", "ScanPair", "open_engines"),
    "registration.options": ("Options",),
    "registration.output.folder": ("Outputs",),
    "registration.quality.figures": ("Figures",),
    "registration.quality.verdict": ("Verdict",),
    "registration.scans": ("FixedScan", "ReadyPair", "Registration", "register"),
    "transforms": ("Link", "Space", "TransformFile", "read_transform", "write_transform"),
    "transforms.apply": ("Applied", "apply_image", "apply_labels", "apply_points"),
    "transforms.chain": ("Route",),
    "transforms.operations": ("compose", "invert", "jacobian"),
    "workflows.checkup.examine": ("Checkup", "examine"),
    "workflows.evaluation.options": ("EvaluateOptions",),
    "workflows.evaluation.results.evaluation": ("Evaluation",),
    "workflows.evaluation.run": ("evaluate",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
