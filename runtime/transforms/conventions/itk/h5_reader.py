"""Reader of ITK's HDF5 transforms for `runtime.host.files.reading_process`: damaged files may crash the HDF5 library.

Facts: {"description": text, "parts": [{"kind": text, "fixed": count, "parameters": count, "type": "<f4"}, ...]}.
Arrays: fixed parameters, of type "<f8", and parameters of each part in this order.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py

MOST_DENSE = 1040  # largest compression factor of deflate
MOST_PARTS = 1000


def read(path: str, size: int) -> tuple[dict[str, Any], list[Any]]:
    """Return the facts and the numbers of all parts."""
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


def _numbers(dataset: "h5py.Dataset", size: int) -> Any:
    """Return all of a dataset's floats; ValueError for more than a file of `size` bytes can hold."""
    if dataset.dtype.kind != "f" or dataset.size * dataset.dtype.itemsize > MOST_DENSE * size:
        raise ValueError(f"{dataset.size} numbers of type {dataset.dtype} cannot be what it holds")
    return dataset[()].ravel()


def _other(file: "h5py.File") -> str:
    """Describe an HDF5 file without an ITK transform."""
    if str(file.attrs.get("Format", "")) == "X5":
        return "it is X5, the format of nitransforms; write it as ITK's there: .to_filename(..., fmt='itk')"
    return "it holds no TransformGroup of ITK"
