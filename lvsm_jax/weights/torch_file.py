"""Reads files written by `torch.save` without PyTorch and without running what is in them.

Such a file is a zip: `*/data.pkl`, a pickle that describes the structure, and `*/data/<n>`, the raw
bytes of each tensor storage. The pickle may name only the few globals below; each becomes an inert
record, never the thing it names, so a hostile file can at worst be refused. Tensors come back as
read-only NumPy views of the memory-mapped file: a large checkpoint takes no memory until used.
"""

import io
import mmap
import os
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401
import numpy as np
from etils import epath

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand
from lvsm_jax.common.text import shortened
from lvsm_jax.weights.plain_pickle import PickleError, Unread, put, read_pickle

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of others Python inflates without bound
_FREE_BYTES = 64 * 2**20  # that any file may claim; beyond, what it holds must be in proportion
_LARGEST_RATIO = 20  # of what a zip inflates to

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before version 1.6

_NAMES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex128 complex64 int64 "
_NAMES += "int32 int16 int8 uint64 uint32 uint16 uint8 bool"
# ml_dtypes adds to NumPy those that it does not have.
_DTYPES = {name: np.dtype(name) for name in _NAMES.split()}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class TorchFileError(UserError):
    """A file that is not a readable `torch.save` zip, or that asks for more than data."""


class _Storage(NamedTuple):
    dtype: np.dtype | None  # None: untyped bytes, the tensor says what they are
    key: str
    size: int  # elements; bytes where untyped


class _Tensor(NamedTuple):
    storage: _Storage
    dtype: np.dtype
    offset: int  # in elements, as are the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """What becomes of an OrderedDict: attributes that the pickle sets on it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype(NamedTuple):
    dtype: np.dtype


class _StorageType(NamedTuple):
    dtype: np.dtype | None  # None: untyped


class _Rebuild(NamedTuple):
    """An allowed function of the pickle, by name: an immutable record that builds records."""

    name: str

    def __call__(self, *args: Any) -> Any:
        if self.name == "OrderedDict":
            return _ordered_dict(*args)
        if self.name == "Size":
            (sizes,) = args
            return tuple(_whole_numbers(sizes))
        if self.name == "_rebuild_parameter":
            return args[0]
        storage, offset, shape, strides, _grad, _hooks, *rest = args
        typed, *rest = rest if self.name == "_rebuild_tensor_v3" else (storage, *rest)
        if any(rest):
            raise PickleError("a tensor with metadata (a lazy view)")
        if not (isinstance(storage, _Storage) and isinstance(typed, _Storage | _Dtype)):
            raise PickleError("a tensor of something else than a storage and a type")
        _whole_numbers([offset])
        sizes = tuple(_whole_numbers(shape)), tuple(_whole_numbers(strides))
        return _Tensor(storage, typed.dtype, offset, *sizes)


def _ordered_dict(pairs: Any = ()) -> _Dict:
    result = _Dict()
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        put(result, key, value)
    return result


def _whole_numbers(values: Any) -> list[int] | tuple[int, ...]:
    if not (isinstance(values, list | tuple) and all(type(value) is int for value in values)):
        raise PickleError("a tensor whose sizes are no whole numbers")
    return values


_REBUILDS = ("_rebuild_parameter", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
_GLOBALS = {
    ("collections", "OrderedDict"): _Rebuild("OrderedDict"),
    ("torch", "Size"): _Rebuild("Size"),
    **{("torch._utils", name): _Rebuild(name) for name in _REBUILDS},
    ("torch.storage", "UntypedStorage"): _StorageType(None),
    **{("torch", name): _StorageType(_DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    **{("torch", name): _Dtype(dtype) for name, dtype in _DTYPES.items()},
}


def _storage(pid: Any) -> _Storage:
    """A storage by its persistent id, of which nothing is believed."""
    if type(pid) is not tuple or len(pid) != 5:
        raise PickleError("expected a tensor storage")
    kind, storage_type, key, _location, size = pid
    fits = isinstance(storage_type, _StorageType) and isinstance(key, str) and type(size) is int
    if kind != "storage" or not fits:
        raise PickleError("expected a tensor storage of text and numbers")
    return _Storage(storage_type.dtype, key, size)


def load(path: epath.PathLike, *, verify: bool = False, keep_unknown: bool = False) -> Any:
    """Reads the object in a `torch.save` file: dicts, lists, tuples, text, numbers and tensors.

    Tensors become read-only NumPy arrays (bfloat16 and float8 as `ml_dtypes`), dtypes NumPy's,
    parameters their arrays and ordered dicts plain ones. Tensors that shared a storage share memory
    still. A file in a bucket is read whole. `verify` compares the zip's checksums, which reads
    every byte. A file with other objects is refused; with `keep_unknown` they become `Unread`, of
    which only the name of the class is kept. Raises OSError where the file cannot be opened, else
    TorchFileError, which names the file and what is wrong with it.
    """
    path = expand(path)
    remote = "://" in os.fspath(path)
    with io.BytesIO(path.read_bytes()) if remote else open(path, "rb") as file:
        try:
            return _load(file, verify, keep_unknown)
        except Exception as error:  # damaged bytes may fail anywhere; callers see one kind
            raise TorchFileError(f"{path}: {shortened(error) or type(error).__name__}") from error


def _load(file: BinaryIO, verify: bool, keep_unknown: bool) -> Any:
    if file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC:
        raise TorchFileError("written by torch.save before 1.6; load and save it with a newer one")
    if not zipfile.is_zipfile(file):
        raise TorchFileError("not a zip file as torch.save writes them, or truncated")
    with zipfile.ZipFile(file) as archive:
        _check_entries(archive, file.seek(0, os.SEEK_END))
        if verify and (bad := archive.testzip()):
            raise TorchFileError(f"entry {bad} does not have its checksum")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise TorchFileError(f"expected one */data.pkl in the zip, found {pickles[:3]}")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist():
            order = _inflated(archive, archive.getinfo(folder + "byteorder"))[:20]
            if order != b"little":
                raise TorchFileError(f"byte order {order!r}: only little-endian files are read")
        pickled = _inflated(archive, archive.getinfo(pickles[0]))
        structure = read_pickle(pickled, _GLOBALS, _storage, keep_unknown=keep_unknown)
        if isinstance(file, io.BytesIO):
            content = file.getbuffer().toreadonly()
        else:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _Resolver(archive, content, folder).value(structure)


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Raises TorchFileError for entries that are larger than a file of this size can honestly have.

    Small zips may inflate to a million times their size, or name the same bytes many times.
    """
    if odd := [entry for entry in archive.infolist() if entry.compress_type not in _METHODS]:
        raise TorchFileError(f"entry {odd[0].filename} is compressed by another method than zlib")
    inflated = sum(entry.file_size for entry in archive.infolist())
    if inflated > _FREE_BYTES + _LARGEST_RATIO * size:
        raise TorchFileError(f"{size} bytes that inflate to {inflated}, which is refused")


def _inflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as content:  # asked for a number of bytes it inflates no more
        data = content.read(entry.file_size)
    if len(data) != entry.file_size:
        raise TorchFileError(f"entry {entry.filename} has {len(data)} bytes of {entry.file_size}")
    return data


class _Resolver:
    """Turns the inert structure into values; a container or storage that is shared stays shared."""

    def __init__(self, archive: zipfile.ZipFile, content: memoryview, folder: str):
        self._archive, self._content, self._folder = archive, content, folder
        self._values: dict[int, Any] = {}  # by identity of the record or container
        self._storages: dict[str, memoryview] = {}

    def value(self, item: Any) -> Any:
        if item is None or isinstance(item, (str, bytes, bool, int, float, Unread)):
            return item
        if id(item) not in self._values:
            self._values[id(item)] = self._build(item)
        return self._values[id(item)]

    def _build(self, item: Any) -> Any:
        match item:
            case _Tensor():
                return self._array(item)
            case _Dtype():
                return item.dtype
            case dict():
                return {self.value(key): self.value(value) for key, value in item.items()}
            case list():
                return [self.value(value) for value in item]
            case tuple() if type(item) is tuple:
                return tuple(self.value(value) for value in item)
        raise TorchFileError(f"holds a {type(item).__name__.strip('_')} where a value is expected")

    def _array(self, tensor: _Tensor) -> np.ndarray:
        storage, dtype, offset, shape, strides = tensor
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise TorchFileError(f"tensor with offset {offset}, shape {shape}, strides {strides}")
        itemsize = dtype.itemsize
        count = storage.size if storage.dtype else storage.size // itemsize
        if 0 in shape:
            return np.empty(shape, dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= count:
            where = f"strides {strides} and offset {offset} in a storage of {count} elements"
            raise TorchFileError(f"tensor of shape {shape}, {where}")
        key = storage.key
        if key not in self._storages:
            self._storages[key] = self._read(self._archive.getinfo(f"{self._folder}data/{key}"))
        content = self._storages[key]
        if len(content) < count * itemsize:
            raise TorchFileError(f"storage {key} has {len(content)} bytes of {count * itemsize}")
        steps = [stride * itemsize for stride in strides]
        return np.ndarray(shape, dtype, content, offset * itemsize, steps)

    def _read(self, entry: zipfile.ZipInfo) -> memoryview:
        if entry.compress_type != zipfile.ZIP_STORED:
            return memoryview(_inflated(self._archive, entry))
        header = entry.header_offset  # 26 bytes in: the lengths of name and extra field, then these
        name, extra = struct.unpack_from("<HH", self._content, header + 26)
        start = header + 30 + name + extra
        if start + entry.file_size > len(self._content):
            raise TorchFileError(f"entry {entry.filename} goes past the end of the file")
        return self._content[start : start + entry.file_size]
