"""Reads a variable of a MAT file, as MATLAB 5 and later write it, as data that is not trusted.

SciPy's reader believes what such a file says of itself: of a few hundred bytes it may run out of
memory or of its stack. The format: "MAT-File Format", The MathWorks, of version 5.
"""

import collections
import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from lvsm_jax.common.errors import UserError

_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_DTYPES |= {12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _NUMBERS = 1, 2, range(6, 16)
_HEADER = 128  # bytes of text and version
_MOST_DEPTH = 16  # of cells and structs in one another
_MOST_GROWTH = 20  # of a compressed variable; weights shrink by little
_GRACE = 2**20  # bytes that it may have anyway

# An array `[...]`, a list of a cell's elements, a list of a struct's elements as dicts by field, or
# None for what is neither (text, sparse matrices, objects).
Value = np.ndarray | list[Any] | None


def read_variable(file: BinaryIO, name: str) -> Value:
    """The variable of a name; UserError if it is not there, or damaged.

    Elements are in the order of the file, by columns. What a file claims is compared with the bytes
    that there are before anything is made of it.
    """
    header = file.read(_HEADER)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None or header[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise UserError("not a MAT file of version 5 to 7")
    while head := file.read(8):
        kind, size = _unpack(order, "II", head)
        if kind not in (_MATRIX, _COMPRESSED):
            raise UserError(f"an element of kind {kind}, expected a variable")
        pieces = _pieces(file, size)
        first = next(pieces, b"")
        if kind == _MATRIX:
            data = b"".join((head, first, *pieces))
        elif name.encode() in _inflate([first], 1024):
            most = _MOST_GROWTH * size + _GRACE
            data = _inflate(itertools.chain([first], pieces), most)
            if len(data) >= most:
                raise UserError(f"a variable of {size} bytes that grows beyond measure")
        else:
            collections.deque(pieces, 0)
            continue
        value, found = _Reader(memoryview(data), order).matrix(name)
        if found:
            return value
    raise UserError(f"no variable {name!r}")


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """So many bytes: a read of what a file claims would take memory for all of it."""
    while size > 0:
        if not (piece := file.read(min(size, 2**20))):
            raise UserError(f"cut: {size} bytes of a variable are missing")
        size -= len(piece)
        yield piece


def _inflate(pieces: Iterable[bytes], most: int) -> bytearray:
    """The first `most` bytes, or all, of what was compressed."""
    stream, data = zlib.decompressobj(), bytearray()
    try:
        for piece in pieces:
            if len(data) < most:  # of 0 bytes more, zlib would give all
                data += stream.decompress(piece, most - len(data))
    except zlib.error as error:
        raise UserError(f"a damaged variable: {error}") from None
    return data


def _unpack(order: str, kinds: str, data: bytes | memoryview) -> tuple[int, ...]:
    try:
        return struct.unpack(order + kinds, data)
    except struct.error:
        raise UserError("cut in the middle of an element") from None


class _Reader:
    """Reads elements one after the other."""

    def __init__(self, data: memoryview, order: str):
        self._data, self._order, self._place = data, order, 0

    def matrix(self, wanted: str | None = None, depth: int = 0) -> tuple[Value, bool]:
        """The next variable, and whether it is the one of the wanted name; others are not read."""
        kind, body = self._element()
        if kind != _MATRIX:
            raise UserError(f"an element of kind {kind}, expected an array")
        if depth > _MOST_DEPTH:
            raise UserError(f"more than {_MOST_DEPTH} cells in one another")
        if not body:
            return np.zeros((0, 0)), wanted is None
        inner = _Reader(body, self._order)
        flags = inner._element()[1]
        shape = inner._numbers().tolist()
        name = bytes(inner._element()[1]).decode("ascii", "replace")
        if wanted is not None and name != wanted:
            return None, False
        kind = _unpack(self._order, "II", flags)[0] & 0xFF
        return inner._content(kind, shape, depth), True

    def _content(self, kind: int, shape: list[int], depth: int) -> Value:
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise UserError(f"an array of shape {shape}")
        count = math.prod(shape)
        if kind == _CELL:
            return self._matrices(count, depth)
        if kind == _STRUCT:
            [length] = self._numbers().tolist() or [0]
            names = bytes(self._element()[1])
            if not isinstance(length, int) or not 0 < length <= 64 or len(names) % length:
                raise UserError("a struct without names")
            parts = [names[i : i + length] for i in range(0, len(names), length)]
            fields = [part.partition(b"\0")[0].decode("ascii", "replace") for part in parts]
            values = self._matrices(count * len(fields), depth)
            rows = (values[i * len(fields) : (i + 1) * len(fields)] for i in range(count))
            return [dict(zip(fields, row, strict=True)) for row in rows] if fields else []
        if kind not in _NUMBERS:
            return None
        numbers = self._numbers()
        if numbers.size != count:
            raise UserError(f"{numbers.size} numbers of an array of shape {shape}")
        return numbers.reshape(shape, order="F")

    def _matrices(self, count: int, depth: int) -> list[Value]:
        if count > (len(self._data) - self._place) // 8:
            raise UserError(f"{count} elements, and there are bytes for fewer")
        return [self.matrix(depth=depth + 1)[0] for _ in range(count)]

    def _numbers(self) -> np.ndarray:
        kind, data = self._element()
        dtype = np.dtype(self._order + _DTYPES[kind]) if kind in _DTYPES else None
        if dtype is None or len(data) % dtype.itemsize:
            raise UserError(f"{len(data)} bytes of kind {kind}, expected numbers")
        return np.frombuffer(data, dtype)

    def _element(self) -> tuple[int, memoryview]:
        """Kind and bytes of the next element."""
        head = self._take(8)
        kind, size = _unpack(self._order, "II", head)
        if kind >> 16:  # a short one, with its bytes in the head
            if kind >> 16 > 4:
                raise UserError("a short element of more than 4 bytes")
            return kind & 0xFFFF, head[4 : 4 + (kind >> 16)]
        body = self._take(size)
        self._place = min(self._place + -size % 8, len(self._data))
        return kind, body

    def _take(self, size: int) -> memoryview:
        if size > len(self._data) - self._place:
            raise UserError("cut in the middle of an element")
        self._place += size
        return self._data[self._place - size : self._place]
