"""A program of its own that reads ITK's HDF5 transforms: damaged files may end it, and the HDF5 library with it.

    python h5_child.py FILE

It writes one line of JSON, then the numbers of each part in the order of the line, as they are in memory:

    {"description": text, "parts": [{"kind": text, "fixed": count, "parameters": count, "type": "<f4"}, ...]}

or {"refused": reason}. The fixed parameters are of type "<f8". It imports nothing of ours, so that it starts quickly.
"""

import json
import sys

CPU_SECONDS, PER_BYTE = 3, 1e-7  # that reading may take, and on top for each byte of the file
MOST_DENSE = 1040  # times the bytes that deflate makes of one
MOST_PARTS = 1000


def main(path: str) -> None:
    """Read a file and write it to standard output."""
    import os

    size = os.stat(path).st_size
    _limit(CPU_SECONDS + PER_BYTE * size)
    try:
        head, numbers = _read(path, size)
    except Exception as error:  # damaged files raise errors of a dozen kinds
        lines = str(error).splitlines() or [""]
        head, numbers = {"refused": lines[0][:300] or type(error).__name__}, []
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    for array in numbers:
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


def _read(path: str, size: int) -> tuple[dict, list]:
    import h5py
    import numpy as np

    parts, numbers = [], []
    with h5py.File(path, "r") as file:
        if "TransformGroup" not in file:
            raise ValueError(_other(file))
        group = file["TransformGroup"]
        if str(file.attrs.get("Format", "")) == "X5" or "0" not in group:
            raise ValueError(_other(file))
        keys = sorted((key for key in group if key.isdigit()), key=int)[:MOST_PARTS]
        for key in keys:
            part = group[key]
            kind = bytes(part["TransformType"][0]).decode("ascii", "replace").split("_")[0][:100]
            word = "Transform" if "TransformParameters" in part else "Tranform"
            fixed, parameters = np.empty(0), np.empty(0)
            if kind != "CompositeTransform":
                fixed = _numbers(part[f"{word}FixedParameters"], size).astype("<f8")
                parameters = _numbers(part[f"{word}Parameters"], size)
            if parameters.dtype != np.dtype("<f4"):
                parameters = parameters.astype("<f8")
            counts = {"fixed": fixed.size, "parameters": parameters.size}
            parts.append({"kind": kind, "type": parameters.dtype.str, **counts})
            numbers += [fixed, parameters]
        description = group.attrs.get("description", "")
    return {"description": str(description), "parts": parts}, numbers


def _numbers(dataset, size: int):
    """All of a dataset's floats, of which a file of `size` bytes can hold so many at most."""
    if dataset.dtype.kind != "f" or dataset.size * dataset.dtype.itemsize > MOST_DENSE * size:
        raise ValueError(f"{dataset.size} numbers of type {dataset.dtype} cannot be what it holds")
    return dataset[()].ravel()


def _other(file) -> str:
    """What an HDF5 file without a transform of ITK is."""
    if str(file.attrs.get("Format", "")) == "X5":
        return "it is X5, the format of nitransforms, which has to write it as ITK's: .to_filename(..., fmt='itk')"
    return "it holds no TransformGroup of ITK"


if __name__ == "__main__":
    main(sys.argv[1])
