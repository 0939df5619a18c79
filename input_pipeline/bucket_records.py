"""Single records of an ArrayRecord file in a bucket, each by a range of exactly its bytes.

ArrayRecord itself requests everything from a record to the end of the file and hangs up when it has
enough: many times the record. This reads the same files from any bucket that fsspec knows.

The format (Riegeli records): the file is blocks of 64 KiB, each beginning with 24 bytes that
interrupt whatever runs across the border. Between these it is chunks: a 40-byte header, then, in
files that `storage` writes (`group_size:1,uncompressed`), a zero byte, the length of the list of
record sizes, that list, and the records. One chunk is one record; the last but one of all lists the
offsets of all the others and the last block says where that list is. Riegeli's checksums
(HighwayHash) are not compared here: the transport has its own.
"""

import os
import struct
from collections.abc import Sequence

import fsspec
import numpy as np
from etils import epath

from lvsm_jax.common.errors import UserError

_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = struct.Struct("<8xQ8xB7xQ")  # size of what follows, type, decoded size


class BucketRecords:
    """Reads records by position, as ArrayRecordReader does; ValueError where the file is damaged.

    Opening costs three requests and the file's index, reading a record one request.
    """

    def __init__(self, path: epath.PathLike):
        self._files, self._path = fsspec.core.url_to_fs(os.fspath(path))
        size = self._files.size(self._path)
        last = size - _BLOCK
        if last < 0 or size % _BLOCK:
            raise UserError(f"{size} bytes are no whole ArrayRecord file; is it truncated?")
        postscript, *_ = _records(self._files.cat_file(self._path, last, size), last)
        footer = _fields(postscript).get(1, -1)
        if not 0 < footer < last:
            raise UserError("the file's last block does not say where its index is")
        _metadata, *entries = _records(self._files.cat_file(self._path, footer, last), footer)
        self._borders = [*(_fields(entry).get(1, -1) for entry in entries), footer]
        if any(
            end <= start for start, end in zip([-1, *self._borders], self._borders, strict=False)
        ):
            raise UserError("the file's index does not lead from one record to the next")

    def num_records(self) -> int:
        """How many records there are."""
        return len(self._borders) - 1

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """The records at `positions`, requested at once."""
        starts = [self._borders[position] for position in positions]
        ends = [self._borders[position + 1] for position in positions]
        paths = [self._path] * len(starts)
        chunks = self._files.cat_ranges(paths, starts, ends, on_error="raise")
        return [_records(chunk, start)[0] for chunk, start in zip(chunks, starts, strict=True)]


def _records(data: bytes, position: int) -> list[bytes]:
    """The records of the chunk at the beginning of `data`, which was read from `position` on."""
    border = -position % _BLOCK
    blocks = [data[start : start + _BLOCK] for start in range(border, len(data), _BLOCK)]
    chunk = b"".join([data[:border], *(block[_BLOCK_HEADER:] for block in blocks)])
    size, kind, decoded_size = _CHUNK_HEADER.unpack_from(chunk)
    content = chunk[_CHUNK_HEADER.size : _CHUNK_HEADER.size + size]
    if kind != ord("r") or len(content) != size or content[:1] != b"\0":
        raise UserError(f"no whole uncompressed chunk of records at byte {position}")
    length, start = _varint(content, 1)
    sizes = _varints(content[start : start + length])
    if sum(sizes) != decoded_size or start + length + decoded_size != size:
        raise UserError(f"the chunk at byte {position} has records of {sum(sizes)} bytes in {size}")
    ends = start + length + np.cumsum(sizes)
    return [content[end - size : end] for size, end in zip(sizes, ends.tolist(), strict=True)]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, seven bits a byte, and where the next one begins."""
    value = shift = 0
    while True:
        byte = data[position]
        if shift > 63:
            raise UserError(f"a number of more than 64 bits at byte {position} of a chunk")
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _varints(data: bytes) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _fields(message: bytes) -> dict[int, int]:
    """The fields of a protocol buffer that holds only numbers."""
    numbers = _varints(message)
    return {tag >> 3: value for tag, value in zip(numbers[::2], numbers[1::2], strict=True)}
