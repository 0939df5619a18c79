"""What tells whether arrays are those that were written: type, shape, and a sum of the bytes."""

import zlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped


def fingerprint(array: Shaped[np.ndarray, "..."]) -> str:
    """Type, shape, and a CRC of the bytes in row-major order, such as `float32[2,16] 0f3e9a71`."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    shape = ",".join(map(str, array.shape))
    return f"{array.dtype}[{shape}] {zlib.crc32(data):08x}"


def fingerprint_all(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    """A CRC of all names and fingerprints, whatever their order."""
    lines = (f"{name} {fingerprint(array)}\n" for name, array in sorted(arrays.items()))
    return f"{zlib.crc32(''.join(lines).encode()):08x}"
