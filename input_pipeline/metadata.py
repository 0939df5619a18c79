"""What a dataset directory says of itself, read without belief: its splits, shards and clips."""

import dataclasses
import io
import zipfile
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int64, Shaped

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json
from lvsm_jax.common.text import shortened

_MOST_FRAMES = 2**40  # of a shard or clip; their sums fit int64
_LARGEST_TABLE, _LARGEST_RATIO = 64 * 2**20, 100  # bytes of a scene table, and how far it inflates


class DatasetError(UserError):
    """A dataset directory that is missing, incomplete, damaged or not ours."""


@dataclasses.dataclass(frozen=True)
class SceneTable:
    """The scenes of a split; scene i is num_frames[i] records from first_frame[i] on."""

    key: Shaped[np.ndarray, "s"]  # str
    url: Shaped[np.ndarray, "s"]  # str
    first_frame: Int64[np.ndarray, "s"]
    num_frames: Int64[np.ndarray, "s"]

    def __len__(self) -> int:
        return len(self.key)

    def locate(self, record: int) -> tuple[int, int]:
        """Row of the scene that holds a record, and the record's position in that clip."""
        row = int(np.searchsorted(self.first_frame, record, side="right")) - 1
        return row, record - int(self.first_frame[row])


def read_info(directory: epath.Path) -> tuple[str, dict[str, list[int]]]:
    """The dataset's name, and for each split the number of records of each shard."""
    if not directory.is_dir():
        raise DatasetError(f"no dataset directory {directory}")
    path = directory / "dataset_info.json"
    if not path.exists():
        raise DatasetError(
            f"{directory} has no dataset_info.json: not a dataset, or its writing was interrupted"
        )
    try:
        info = read_json(path)
        name = info["name"]
        lengths = {split["name"]: _lengths(split["shardLengths"]) for split in info["splits"]}
        if not all(isinstance(word, str) and word.isidentifier() for word in (name, *lengths)):
            raise DatasetError("names must be letters, digits and _")
        return name, lengths
    except (ValueError, KeyError, TypeError) as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise DatasetError(f"{path} is damaged: {kind}{shortened(error)}") from error


def _lengths(values: Any) -> list[int]:
    """Records of each shard; protocol buffers write them to JSON as text."""
    if not isinstance(values, list) or not values:
        raise DatasetError("shardLengths must be a list")
    lengths = [int(value) for value in values]
    if not all(0 <= length < _MOST_FRAMES for length in lengths):
        raise DatasetError("shardLengths must be numbers of frames")
    return lengths


def read_scene_table(path: epath.Path) -> SceneTable:
    """The clips of a split; DatasetError, which names the file, where it is damaged."""
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > _LARGEST_TABLE + _LARGEST_RATIO * len(data):
            raise DatasetError(f"{len(data)} bytes inflate to {inflated}")
        with np.load(io.BytesIO(data), allow_pickle=False) as there:
            columns = {f.name: there[f.name] for f in dataclasses.fields(SceneTable)}
        if not all(isinstance(column, np.ndarray) for column in columns.values()):
            raise DatasetError("a column is no array")
        _check_columns(**columns)
        return SceneTable(**columns)
    except Exception as error:
        raise DatasetError(f"cannot read the scene table {path}: {shortened(error)}") from error


def _check_columns(
    key: np.ndarray, url: np.ndarray, first_frame: np.ndarray, num_frames: np.ndarray
) -> None:
    """Raises DatasetError unless they are of a scene table whose clips lie one after the other."""
    texts, numbers = (key, url), (first_frame, num_frames)
    kinds = [column.dtype.kind for column in texts] + [column.dtype for column in numbers]
    shapes = {column.shape for column in (*texts, *numbers)}
    if kinds != ["U", "U", np.int64, np.int64] or shapes != {(key.size,)}:
        raise DatasetError("its columns are not key, url, first_frame and num_frames of each clip")
    counts = (num_frames >= 0) & (num_frames < _MOST_FRAMES)
    if not (counts.all() and np.array_equal(first_frame, np.cumsum(num_frames) - num_frames)):
        raise DatasetError("its clips do not lie one after the other")
