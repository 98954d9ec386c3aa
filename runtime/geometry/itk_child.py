"""A program of its own that reads NRRD and MetaImage with SimpleITK; see `runtime.geometry.elsewhere`.

    python itk_child.py FILE [--voxels]

Its line of JSON is {"shape": three sizes, "type": "<i2" or the like, "affine": 4 x 4, voxel -> LPS mm, "placed":
whether the header says where voxels lie}; with --voxels they follow, first axis fastest.
"""

import json
import re
import sys

CPU_SECONDS, PER_BYTE = 3, 1e-7  # that reading may take, and on top for each byte of the file
MOST_DENSE = 1040  # times the bytes that deflate makes of one
TEXT = 1 << 16  # bytes in which a header ends
DETACHED = re.compile(rb"^(data ?file:|ElementDataFile\s*=(?!\s*LOCAL\b))", re.IGNORECASE | re.MULTILINE)
PLACED = re.compile(rb"^(space:|space dimension:|TransformMatrix|Offset|Position|Orientation)", re.MULTILINE)
TYPES = {
    **{
        f"{bits}-bit {sign} integer": f"{code}{bits // 8}"
        for bits in (8, 16, 32, 64)
        for sign, code in (("signed", "<i"), ("unsigned", "<u"))
    },
    "32-bit float": "<f4",
    "64-bit float": "<f8",
}


def main(path: str, voxels: bool) -> None:
    """Read a file and write it to standard output."""
    try:
        head, array = _read(path, voxels)
    except ImportError:
        head, array = {"refused": "SimpleITK, which reads it, is not installed: pip install SimpleITK"}, None
    except Exception as error:  # damaged files raise errors of a dozen kinds
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        head, array = {"refused": lines[-1].strip()[:300]}, None
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    if array is not None:
        sys.stdout.buffer.write(memoryview(array).cast("B"))
    sys.stdout.buffer.flush()


def _limit(seconds: float) -> None:
    """The system ends this process when it has computed for so long; where it cannot, its parent's clock does."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(path: str, voxels: bool) -> tuple[dict, object]:
    import math
    import os

    import SimpleITK as sitk

    size = os.stat(path).st_size
    _limit(CPU_SECONDS + PER_BYTE * size)
    with open(path, "rb") as file:
        text = re.split(rb"\n\r?\n", file.read(TEXT))[0]
    if DETACHED.search(text):
        raise ValueError("its voxels are in another file; write both into one")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or kind not in TYPES or reader.GetDimension() != 3:
        raise ValueError(
            f"it has {reader.GetDimension()} axes and {reader.GetNumberOfComponents()} numbers a voxel ({kind}), "
            "expected a volume of one"
        )
    shape, dtype = reader.GetSize(), TYPES[kind]
    if math.prod(shape) * int(dtype[2:]) > MOST_DENSE * size:
        raise ValueError(f"voxels of shape {shape} cannot be what it holds")
    columns = [
        [reader.GetDirection()[3 * row + axis] * reader.GetSpacing()[axis] for axis in range(3)] for row in range(3)
    ]
    affine = [[*columns[row], reader.GetOrigin()[row]] for row in range(3)] + [[0, 0, 0, 1]]
    head = {"shape": shape, "type": dtype, "affine": affine, "placed": bool(PLACED.search(text))}
    return head, sitk.GetArrayFromImage(reader.Execute()) if voxels else None


if __name__ == "__main__":
    main(sys.argv[1], "--voxels" in sys.argv[2:])
