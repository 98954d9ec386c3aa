"""A reader of NRRD and MetaImage with SimpleITK, for `runtime.host.files.reading_process`.

Facts: {"shape": three sizes, "type": "<i2" or the like, "affine": 4 x 4, voxel -> LPS mm, "placed": whether the header
defines the voxels' positions}. With the option --voxels the voxels follow, first axis fastest.
"""

import re
from typing import Any

MOST_DENSE = 1040  # largest compression ratio of deflate, rounded up
TEXT = 1 << 16  # bytes that contain the whole header
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


def read(path: str, size: int, *options: str) -> tuple[dict[str, Any], list[Any]]:
    """Return the facts, and the voxels if requested."""
    try:
        return _read(path, size, "--voxels" in options)
    except ImportError:
        raise ValueError("SimpleITK, which reads it, is not installed: pip install SimpleITK") from None
    except Exception as error:  # the last line of ITK's message has the reason
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ValueError(lines[-1].strip()) from None


def _read(path: str, size: int, voxels: bool) -> tuple[dict[str, Any], list[Any]]:
    import math

    import SimpleITK as sitk

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
            f"it has {reader.GetDimension()} axes and {reader.GetNumberOfComponents()} values per voxel "
            f"({kind}), expected 3 axes and one value"
        )
    shape, dtype = reader.GetSize(), TYPES[kind]
    if math.prod(shape) * int(dtype[2:]) > MOST_DENSE * size:
        raise ValueError(f"it is too small for voxels of shape {shape}")
    columns = [
        [reader.GetDirection()[3 * row + axis] * reader.GetSpacing()[axis] for axis in range(3)] for row in range(3)
    ]
    affine = [[*columns[row], reader.GetOrigin()[row]] for row in range(3)] + [[0, 0, 0, 1]]
    head = {"shape": shape, "type": dtype, "affine": affine, "placed": bool(PLACED.search(text))}
    return head, [sitk.GetArrayFromImage(reader.Execute())] if voxels else []
