"""Whether the files of a COLMAP model are whole.

COLMAP's reader takes what is missing at the end of a binary file for other numbers. Here each file
is walked through once, by the sizes of its records, without a look at the numbers.
"""

import pathlib
import struct
from collections.abc import Callable, Iterator

from lvsm_jax.scenes.readers.scene import SceneError

# Parameters of a camera, by the number of its model.
_PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16)


class _Walk:
    """A place in the bytes of a file, which cannot pass their end."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def skip(self, size: int) -> None:
        """Passes so many bytes."""
        self.at += size
        if self.at > len(self.data):
            raise SceneError(f"it ends after {len(self.data)} bytes, in the middle of a record")

    def take(self, layout: str) -> tuple[int, ...]:
        """The numbers that come next."""
        size = struct.calcsize("<" + layout)
        self.skip(size)
        return struct.unpack_from("<" + layout, self.data, self.at - size)


def _cameras(walk: _Walk) -> None:
    _, model, _, _ = walk.take("IiQQ")  # id, width, height
    if not 0 <= model < len(_PARAMETERS):
        raise SceneError(f"camera model {model} is not known")
    walk.skip(8 * _PARAMETERS[model])


def _images(walk: _Walk) -> None:
    walk.skip(4 + 7 * 8 + 4)  # id, pose, camera
    end = walk.data.find(b"\0", walk.at)
    walk.skip((end if end >= 0 else len(walk.data)) + 1 - walk.at)
    (points,) = walk.take("Q")
    walk.skip(24 * points)


def _points(walk: _Walk) -> None:
    walk.skip(8 + 3 * 8 + 3 + 8)  # id, position, colour, error
    (track,) = walk.take("Q")
    walk.skip(8 * track)


def _rigs(walk: _Walk) -> None:
    _, sensors = walk.take("II")
    if sensors:
        walk.skip(8)  # the reference sensor
    for _ in range(sensors - 1):
        *_, has_pose = walk.take("iIB")
        walk.skip(7 * 8 if has_pose else 0)


def _frames(walk: _Walk) -> None:
    walk.skip(4 + 4 + 7 * 8)  # id, rig, pose
    (data,) = walk.take("I")
    walk.skip(16 * data)


_RECORDS: dict[str, Callable[[_Walk], None]] = {
    "cameras": _cameras,
    "images": _images,
    "points3D": _points,
    "rigs": _rigs,
    "frames": _frames,
}


def check_whole(folder: pathlib.Path) -> None:
    """Raises SceneError, which names the file, for one that is cut, or goes on after its end."""
    for file, record in _files(folder):
        try:
            if file.suffix == ".bin":
                _check_binary(file.read_bytes(), record)
            elif not file.read_bytes().endswith(b"\n"):
                raise SceneError("its last line has no end: it is cut, or lacks a newline")
        except SceneError as error:
            raise SceneError(
                f"{folder}: no COLMAP model that can be read: {file.name}: {error}"
            ) from None


def _files(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, Callable[[_Walk], None]]]:
    """The files that are there, of which COLMAP takes the binary ones first."""
    ending = ".bin" if (folder / "images.bin").is_file() else ".txt"
    for name, record in _RECORDS.items():
        file = folder / (name + ending)
        if file.is_file() and (ending == ".bin" or file.stat().st_size):
            yield file, record


def _check_binary(data: bytes, record: Callable[[_Walk], None]) -> None:
    walk = _Walk(data)
    (count,) = walk.take("Q")
    for _ in range(count):  # each passes some bytes, so that a false number ends soon
        record(walk)
    if walk.at != len(data):
        raise SceneError(f"its {count} records take {walk.at} of {len(data)} bytes")
