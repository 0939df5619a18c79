"""Writes files as `torch.save` does, without PyTorch; for tests only.

`torch.load(weights_only=True)` reads them (test_torch_file checks that where torch is installed).
"""

import dataclasses
import io
import pickle
import zipfile
from typing import Any, NamedTuple

import numpy as np

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global(NamedTuple):
    """A global to be named in the pickle; calling it here does nothing."""

    module: str
    name: str

    def __call__(self) -> None:
        raise AssertionError("only named, never called")


@dataclasses.dataclass(eq=False)
class Call:
    """`function(*args)`, and then `state` set on the result where given, at loading time."""

    function: Global
    args: tuple
    state: Any = None


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage (a 1-D array), for tensors that are not simply contiguous."""

    storage: np.ndarray
    offset: Any = 0
    shape: tuple = ()
    strides: tuple = ()


class _Pickler(pickle._Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, item: Any) -> tuple | None:
        if not (isinstance(item, tuple) and len(item) == 2 and item[0] == "a storage"):
            return None
        array = item[1]
        if not any(array is known for known in self.storages):
            self.storages.append(array)
        key = next(i for i, known in enumerate(self.storages) if array is known)
        kind = Global("torch", _STORAGES[array.dtype.name])
        return ("storage", kind, str(key), "cpu", array.size)

    def save_global_name(self, item: Global) -> None:
        self.write(f"c{item.module}\n{item.name}\n".encode())

    def save_call(self, item: Call) -> None:
        self.save_reduce(item.function, item.args, state=item.state)

    def save_tensor(self, item: Tensor) -> None:
        rebuild = Global("torch._utils", "_rebuild_tensor_v2")
        hooks = Call(Global("collections", "OrderedDict"), ())
        storage = ("a storage", item.storage)
        self.save_reduce(rebuild, (storage, item.offset, item.shape, item.strides, False, hooks))

    def save_array(self, array: np.ndarray) -> None:
        flat = np.ascontiguousarray(array).reshape(-1)
        strides = tuple(
            stride // array.itemsize for stride in np.empty_like(array, order="C").strides
        )
        self.save_tensor(Tensor(flat, 0, array.shape, strides))

    dispatch = {  # noqa: RUF012
        **pickle._Pickler.dispatch,
        Global: save_global_name,
        Call: save_call,
        Tensor: save_tensor,
        np.ndarray: save_array,
    }


def dumps(value: Any) -> tuple[bytes, list[np.ndarray]]:
    """The pickle and the storages it refers to."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.storages


def write(
    path,
    pickled: bytes,
    storages: list[np.ndarray],
    *,
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Writes the zip around a pickle and its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for index, storage in enumerate(storages):
            archive.writestr(f"archive/data/{index}", storage.tobytes())
        archive.writestr("archive/version", b"3\n")


def save(path, value: Any, **options: Any) -> None:
    """Writes `value` (containers, text, numbers, NumPy arrays, `Tensor`, `Call`) to a file."""
    write(path, *dumps(value), **options)
