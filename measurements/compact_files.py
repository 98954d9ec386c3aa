"""Encodings of a displacement field and a Jacobian: size, error, CPU seconds, and whether ITK reads them.

    python -m measurements.compact_files DIR [--output table.md]
    python -m measurements.compact_files --pair FIXED MOVING

DIR is a result of `register` that is not compact. Each encoding is written to a temporary folder by one thread, and
read back with nibabel, and with SimpleITK in a process of its own, because some crash it. Errors are the largest of
all voxels. With `--pair`, two scans are registered once, and saved with several selections of files.
"""

import argparse
import gzip
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

import runtime
from runtime.geometry.grid import Grid
from runtime.geometry.jacobian import jacobian_of_displacement
from runtime.host.files.whole_files import write_text
from runtime.images.formats.gzip_stream import DENSE, FAST, Compression
from runtime.images.formats.nifti_writer import write_nifti
from runtime.images.formats.rounding import rounded_to_bits, rounded_to_steps

Array = np.ndarray
WRITER_LEVELS = {"as today": FAST, **{f"level {level}": Compression(level, DENSE.strategy) for level in (1, 4, 6)}}
SELECTIONS = {
    "all": runtime.Outputs(),
    "all, `--compact`": runtime.Outputs(compact=True),
    "`--outputs warped,warp,inverse --compact`": runtime.Outputs(kinds=("warped", "warp", "inverse"), compact=True),
    "`--outputs warped,warp --compact`": runtime.Outputs(kinds=("warped", "warp"), compact=True),
    "`--outputs warped`": runtime.Outputs(kinds=("warped",)),
}
READ = """
import sys, numpy, SimpleITK
image = SimpleITK.ReadImage(sys.argv[1])
numpy.save(sys.argv[2], SimpleITK.GetArrayFromImage(image))
"""


def main() -> None:
    """Measure all encodings and print two tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, metavar="DIR", nargs="?", help="a result of register")
    parser.add_argument("--pair", type=Path, nargs=2, metavar="SCAN", help="scans to register instead")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    if (arguments.result is None) == (arguments.pair is None):
        parser.error("give either DIR or --pair")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        if arguments.pair:
            lines = list(selections(*arguments.pair, Path(folder)))
        else:
            measure = Measurement(arguments.result, Path(folder), pool)
            lines = [*measure.fields(), "", *measure.jacobians(), "", *measure.derived()]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.output:
        write_text(arguments.output, text)


def selections(fixed: Path, moving: Path, folder: Path) -> Iterator[str]:
    """Register a pair, save it twice with every selection of files, and yield a table; CPU seconds are the lower."""
    with runtime.open_engines() as engines:
        result = engines.register(fixed, moving)
    computed = dict(vars(result))
    yield "| files | MB | CPU s of saving |"
    yield "| --- | --- | --- |"
    seconds: dict[str, list[float]] = {name: [] for name in SELECTIONS}
    sizes = {}
    for _ in range(2):
        for name, outputs in SELECTIONS.items():
            for cached in set(vars(result)) - set(computed):
                del vars(result)[cached]  # what saving computes on demand
            start = time.process_time()
            result.save(folder / "out", overwrite=True, outputs=outputs)
            seconds[name].append(time.process_time() - start)
            sizes[name] = sum(path.stat().st_size for path in (folder / "out").iterdir()) / 1e6
    for name in SELECTIONS:
        yield f"| {name} | {sizes[name]:.1f} | {min(seconds[name]):.1f} |"


class Measurement:
    """A result's field and Jacobian, and the folder that encodings are written to."""

    def __init__(self, result: Path, folder: Path, pool: ThreadPoolExecutor) -> None:
        image = nib.load(result / "warp.nii.gz")
        self.field = np.asfortranarray(np.asanyarray(image.dataobj))
        self.grid = Grid(self.field.shape[:3], image.affine)
        self.jacobian = np.asfortranarray(np.asanyarray(nib.load(result / "jacobian.nii.gz").dataobj))
        self.path, self.pool = folder / "encoded.nii.gz", pool

    def fields(self) -> Iterator[str]:
        """Yield a table of encodings of the field."""
        yield "| field | compression | MB | largest error, mm | CPU s: write | read | SimpleITK |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        yield self._field("float32", "as today", lambda field: field)
        for power in (7, 6, 5, 4):
            for level in ("level 1", "level 4", "level 6"):
                step = 2.0**-power
                yield self._field(
                    f"float32, step 2^-{power} mm", level, lambda field, s=step: rounded_to_steps(field, s)
                )
        for slope, name in ((0.01, "0.01"), (2.0**-5, "2^-5")):
            yield self._field(f"int16 of {name} mm, scl_slope", "level 4", lambda field, s=slope: field / s, slope)

    def jacobians(self) -> Iterator[str]:
        """Yield a table of encodings of the Jacobian."""
        yield "| Jacobian, float32 | compression | MB | largest relative error | CPU s: write |"
        yield "| --- | --- | --- | --- | --- |"
        for name, level, bits in (("all", "as today", 0), *((f"{n} bits", "level 4", n) for n in (6, 7, 8, 9, 10))):
            data = rounded_to_bits(self.jacobian, bits) if bits else self.jacobian
            seconds = self._write(data, level)
            error = np.abs(data / self.jacobian - 1).max()
            yield f"| {name} | {level} | {self.path.stat().st_size / 1e6:.1f} | {error:.2g} | {seconds:.1f} |"

    def derived(self) -> Iterator[str]:
        """Yield how far the Jacobian computed from a rounded field is from that of the field."""
        exact = self._determinant(self.field)
        for power in (6, 5):
            difference = self._determinant(rounded_to_steps(self.field, 2.0**-power)) - exact
            spread = f"SD {difference.std():.2g}, largest {np.abs(difference).max():.2g}"
            yield f"Jacobian determinant of the field rounded to 2^-{power} mm, minus that of the field: {spread}"

    def _determinant(self, field: Array) -> Array:
        return jacobian_of_displacement(np.asfortranarray(field[:, :, :, 0] * np.float32([-1, -1, 1])), self.grid)

    def _field(self, name: str, level: str, encode: Callable[[Array], Array], slope: float = 1.0) -> str:
        start = time.process_time()
        data = encode(self.field)
        data = data if slope == 1 else np.rint(data).astype(np.int16)
        seconds = time.process_time() - start + self._write(data, level, 1007, slope)
        start = time.process_time()
        with gzip.open(self.path) as stream:
            stream.read()
        reading = time.process_time() - start
        error = np.linalg.norm(nib.load(self.path).get_fdata(dtype=np.float32) - self.field, axis=-1).max()
        size = self.path.stat().st_size / 1e6
        return (
            f"| {name} | {level} | {size:.1f} | {error:.4f} | {seconds:.1f} | {reading:.1f} | {self._by_itk(error)} |"
        )

    def _write(self, data: Array, level: str, intent: int = 0, slope: float = 1.0) -> float:
        """Write an encoding and return the CPU seconds."""
        start = time.process_time()
        compression = WRITER_LEVELS[level]
        write_nifti(self.path, data, self.grid, intent=intent, slope=slope, pool=self.pool, compression=compression)
        return time.process_time() - start

    def _by_itk(self, error: float) -> str:
        """Return whether SimpleITK reads the same numbers as nibabel."""
        array = self.path.with_name("read.npy")
        array.unlink(missing_ok=True)
        done = subprocess.run([sys.executable, "-c", READ, str(self.path), str(array)], capture_output=True)
        if done.returncode:
            return "crashes" if done.returncode < 0 else "refuses"
        read = np.load(array, mmap_mode="r").transpose(2, 1, 0, 3)
        found = np.linalg.norm(read - self.field[:, :, :, 0], axis=-1).max()
        return "reads it" if abs(found - error) < 1e-4 else f"off by {found:.3g} mm"


if __name__ == "__main__":
    main()
