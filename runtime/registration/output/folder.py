"""Result folder of a registration: the names of its files, and the check that they may be written."""

import contextlib
import errno
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, explained, first_line, refused
from ...host.files.plain_json import read_record
from ...images.volume import scan_name
from ...transforms import CONVENTIONS, file_name

WARPED, WARPED_FIXED, LABELS = "warped.nii.gz", "warped_fixed.nii.gz", "warped_labels.nii.gz"
AFFINE, JACOBIAN = "affine.txt", "jacobian.nii.gz"
PREVIEW, PAGE, REPORT = "preview.png", "report.html", "report.json"
REPORT_FORMAT = "rpnet-registration"
KINDS = ("warped", "labels", "warped_fixed", "warp", "inverse", "affine", "jacobian", "preview", "report")
INVERSE_KINDS = ("warped_fixed", "inverse")  # which need the inverse


@dataclass(frozen=True)
class Outputs:
    """The files to write; report.json is always among them.

    Attributes:
        conventions: conventions of the transforms, names in `runtime.transforms.CONVENTIONS`; one file per direction.
        both: True to write the direction from the moving to the fixed scan too: the inverse transform and the fixed
            scan on the moving grid.
        page: True to write the page, report.html.
        full_page: True to keep the volumes in its viewer at the working grid's resolution, else at half of it.
        kinds: the files by kind, names in `KINDS`; None: all that `both` and `page` allow. "labels" is written only if
            the registration has labels; "report" is the page.
        compact: True to store displacements and Jacobian rounded and compressed: every point within 0.03 mm
            (`runtime.transforms.tolerance_mm`), every determinant within 0.2 % (`COMPACT_ERROR` in
            `runtime.images.formats.nifti_writer`).

    Raises:
        InputError: an unknown convention or kind, or none; kinds that `both`, `page` and `full_page` contradict.
    """

    conventions: tuple[str, ...] = ("itk",)
    both: bool = True
    page: bool = True
    full_page: bool = False
    kinds: tuple[str, ...] | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.conventions if name not in CONVENTIONS]
        if unknown or not self.conventions:
            got = repr(unknown[0]) if unknown else "nothing"
            raise InputError(
                f"--write: got {got}, expected one or several of {', '.join(CONVENTIONS)}, separated by commas"
            )
        if self.kinds is not None:
            self._check_kinds(self.kinds)

    def _check_kinds(self, kinds: tuple[str, ...]) -> None:
        unknown = [name for name in kinds if name not in KINDS]
        if unknown or not kinds:
            got = repr(unknown[0]) if unknown else "nothing"
            raise InputError(
                f"--outputs: got {got}, expected one or several of {', '.join(KINDS)}, separated by commas"
            )
        if not self.both and (needing := [name for name in INVERSE_KINDS if name in kinds]):
            raise InputError(f"--outputs: got {needing[0]}, which --forward-only leaves out; give one of the two")
        if not self.page and "report" in kinds:
            raise InputError("--outputs: got report, which --no-report leaves out; give one of the two")
        if self.full_page and "report" not in kinds:
            raise InputError("--report-full: got it with --outputs that lack report; add report to them")

    def wants(self, *kinds: str) -> bool:
        """Return True if files of one of these kinds, names in `KINDS`, are to be written."""
        left_out = {*(() if self.both else INVERSE_KINDS), *(() if self.page else ("report",))}
        return any(name in (KINDS if self.kinds is None else self.kinds) and name not in left_out for name in kinds)

    @property
    def needs_inverse(self) -> bool:
        """True if a file to write needs the inverse."""
        return self.wants(*INVERSE_KINDS)

    def transforms(self, fixed: str, moving: str) -> dict[str, tuple[str, bool]]:
        """Return file name -> (convention, True for the inverse), for scans of these names."""
        if fixed.casefold() == moving.casefold():
            fixed, moving = "fixed", "moving"
        directions = [inverse for inverse, kind in ((False, "warp"), (True, "inverse")) if self.wants(kind)]
        return {
            file_name(convention, inverse, fixed, moving): (convention, inverse)
            for inverse in directions
            for convention in dict.fromkeys(self.conventions)
        }

    def names(self, fixed: str, moving: str, labels: bool) -> tuple[str, ...]:
        """Return the names of a result's files, the report last: it is written after all others."""
        transforms = tuple(self.transforms(fixed, moving))  # of the kinds "warp" and "inverse"
        single = {"affine": AFFINE, "jacobian": JACOBIAN, "preview": PREVIEW, "report": PAGE}
        images = {"warped": WARPED, **({"labels": LABELS} if labels else {}), "warped_fixed": WARPED_FIXED}
        before, after = ([name for kind, name in part.items() if self.wants(kind)] for part in (images, single))
        return (*before, *transforms, *after, REPORT)


EVERYTHING = Outputs(CONVENTIONS)


@explained("--output")
def check_output(
    folder: Path,
    overwrite: bool,
    fixed: Path | str | None = None,
    moving: Path | str | None = None,
    inputs: Iterable[Path | str | None] = (),
) -> None:
    """Check, before any work, that the folder is writable, and that no input or earlier result would be replaced.

    A folder that is created for this check is removed again.

    Args:
        folder: folder of the result.
        overwrite: True if an earlier result may be replaced.
        fixed, moving: the scans, after which some files are named.
        inputs: further files that must not be replaced.

    Raises:
        InputError: the folder is not writable, an input would be replaced, or there is an earlier result and
            `overwrite` is False.
    """
    _check_writable(folder)
    names = earlier_names(folder, fixed, moving)
    replaced = {(folder / name).resolve() for name in names}
    for path in (fixed, moving, *inputs):
        if path is not None and Path(path).resolve() in replaced:
            raise InputError(f"--output: would replace the input {path}; choose another folder")
    there = [name for name in names if _exists(folder / name)]
    if odd := [name for name in there if not (folder / name).is_file()]:
        raise InputError(f"--output: {folder / odd[0]} is not a file and cannot be replaced; choose another folder")
    if there and not overwrite:
        raise InputError(f"--output: {folder} already holds {', '.join(there)}; add --overwrite or choose another")


def earlier_names(folder: Path, fixed: Path | str | None, moving: Path | str | None) -> tuple[str, ...]:
    """Return the names of all files that an earlier result in this folder may consist of."""
    ours = EVERYTHING.names(scan_name(fixed), scan_name(moving), labels=True)
    return tuple(dict.fromkeys((*ours, *_reported(folder / REPORT))))


def _reported(report: Path) -> tuple[str, ...]:
    """Return the files listed in an earlier report, which may be named after other scans."""
    names = read_record(report, REPORT_FORMAT).get("outputs", ())
    names = names if isinstance(names, list) else ()
    return tuple(name for name in names if isinstance(name, str) and Path(name).name == name)


def _exists(path: Path) -> bool:
    """Return True if a path exists; False for a name too long for the system, which raises an error elsewhere."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _check_writable(folder: Path) -> None:
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise refused(f"--output: cannot write to {folder} ({reason}); choose another folder", error) from None
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
