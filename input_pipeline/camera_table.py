"""The cameras of all frames of a split, beside the records, for what asks before it reads frames.

`cameras-<split>.npz` has `w2c` (float32[n, 3, 4]) and `normalized_fxfycxcy` (float32[n, 4]) of each
record, as it has them. It is there where clips are photographs without an order, of which views
are drawn by what they have in common.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from etils import epath
from jaxtyping import Float32

from input_pipeline.metadata import DatasetError
from lvsm_jax.common.camera_limits import check_intrinsics, check_positions
from lvsm_jax.common.files import atomic_write, expand
from lvsm_jax.common.text import shortened

_FREE_BYTES, _BYTES_OF_FRAME = 2**16, 64


@dataclass(frozen=True, eq=False)
class CameraTable:
    """Cameras one after the other: world-to-camera, and intrinsics in shares of the sides."""

    w2c: Float32[np.ndarray, "n 3 4"]
    normalized_fxfycxcy: Float32[np.ndarray, "n 4"]

    @classmethod
    def joined(cls, tables: Sequence["CameraTable"]) -> "CameraTable":
        """One after the other."""
        columns = (np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(cls))
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.w2c)

    def some(self, first: int, count: int) -> "CameraTable":
        """Those of `count` frames from `first` on."""
        frames = slice(first, first + count)
        return CameraTable(self.w2c[frames], self.normalized_fxfycxcy[frames])


def table_path(directory: epath.PathLike, split: str) -> epath.Path:
    """Where the table of a split is, if it has one."""
    return expand(directory) / f"cameras-{split}.npz"


def write_camera_table(directory: epath.PathLike, split: str, table: CameraTable) -> None:
    """Writes the cameras of a split, the same bytes every time."""
    with atomic_write(table_path(directory, split)) as local, open(local, "wb") as file:
        np.savez_compressed(file, **vars(table))


def read_camera_table(directory: epath.PathLike, split: str, num_frames: int) -> CameraTable | None:
    """The cameras of a split of so many frames; None where the dataset has no such table.

    DatasetError, which names the file, where it is damaged.
    """
    path = table_path(directory, split)
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > _FREE_BYTES + _BYTES_OF_FRAME * num_frames:
            raise DatasetError(f"its {inflated} bytes are more than {num_frames} cameras have")
        with np.load(io.BytesIO(data), allow_pickle=False) as there:
            arrays = {field.name: there[field.name] for field in fields(CameraTable)}
        expected = {"w2c": (num_frames, 3, 4), "normalized_fxfycxcy": (num_frames, 4)}
        for name, shape in expected.items():
            array = arrays[name]
            if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
                found = f"{array.dtype}{list(array.shape)}"
                raise DatasetError(f"{name} is {found}, expected finite float32{list(shape)}")
        check_intrinsics(arrays["normalized_fxfycxcy"], 1, 1)
        check_positions("w2c", arrays["w2c"][:, :, 3])
        return CameraTable(**arrays)
    except Exception as error:
        raise DatasetError(f"cannot read the cameras {path}: {shortened(error)}") from error
