"""Weights in few bytes: matrices as bfloat16, or as int8 with a float32 scale for each output.

What is no matrix (scales of norms, latents) stays as it is. A file of packed weights has no date
and no path in it: the same weights are the same bytes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jaxtyping import Float32, Shaped

DTYPES = ("bfloat16", "int8")

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]

SCALES = "_scales"  # those of `head.kernel` are `head.kernel_scales`

_MATRIX = ".kernel"
_STORED = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "I8": np.int8}
_LARGEST = 127  # of int8, to both sides


def pack(name: str, array: Shaped[np.ndarray, "..."], dtype: str) -> dict[str, np.ndarray]:
    """The arrays that are stored for one array of a model, by name.

    The largest weight of a column becomes ±127, the others the nearest whole numbers.
    """
    if not name.endswith(_MATRIX):
        return {name: array}
    if dtype == "bfloat16":
        return {name: array.astype(ml_dtypes.bfloat16)}
    largest = np.abs(array).max(axis=-2, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return {name: np.rint(array / scales).astype(np.int8), name + SCALES: scales}


def unpack(name: str, arrays: Arrays) -> Float32[np.ndarray, "..."]:
    """The array of a model, of what `pack` stored."""
    array = arrays[name].astype(np.float32)
    return array * arrays[name + SCALES] if name + SCALES in arrays else array


def stored_shapes(abstract: Mapping[str, Any], dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Types and shapes of the stored arrays, for those of a model by name."""
    shapes = {}
    for name, leaf in abstract.items():
        matrix = name.endswith(_MATRIX)
        shapes[name] = jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype) if matrix else leaf.dtype)
        if matrix and dtype == "int8":
            columns = (*leaf.shape[:-2], 1, leaf.shape[-1])
            shapes[name + SCALES] = jax.ShapeDtypeStruct(columns, np.float32)
    return shapes


def write(file: epath.Path, arrays: Arrays) -> None:
    """Writes stored arrays as one .safetensors file."""
    file.write_bytes(safetensors.numpy.save(dict(arrays)))


def read(file: epath.Path) -> dict[str, np.ndarray]:
    """The arrays that `write` stored. Any exception of the reader says that they are damaged."""
    return {
        name: np.frombuffer(entry["data"], _STORED[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(file.read_bytes())
    }
