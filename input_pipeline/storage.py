"""The dataset directory: one record a frame, so that reading 8 frames costs 8 frames.

    dataset_info.json  features.json                  the schema and the splits, as TFDS writes them
    <name>-<split>.array_record-XXXXX-of-XXXXX        the frames, clip after clip, in clip order
    scenes-<split>.npz                                the scene table: key, url, first frame, count
    cameras-<split>.npz, alpha.json                   where there are: `camera_table`, `alpha`

A frame is a `tf.Example` with the features `image` (bytes of a JPEG or PNG, never decoded here),
`fxfycxcy` (float32[4], fx and cx divided by the image's width, fy and cy by its height), `w2c`
(float32[3, 4], OpenCV world-to-camera) and `timestamp` (int64, microseconds). Any program can read
the directory with `tfds.builder_from_directory(directory).as_data_source(split)`; `SplitReader`
reads the same files with less traffic, knows the scenes, and imports nothing that the files name.

A directory may lie in a bucket (`gs://`, `s3://`, …), whose fsspec package it needs, for `gs://`
gcsfs. Frames are read through fsspec (`bucket_records`), all else goes through `etils.epath`, which
prefers TensorFlow's file systems where TensorFlow is installed: EPATH_USE_TF=0 has fsspec alone.
"""

import collections
import dataclasses
import functools
import os
import resource
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Float32

from input_pipeline.metadata import DatasetError, SceneTable, read_info, read_scene_table
from input_pipeline.tf_example import Example
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import atomic_write, expand, write_text
from lvsm_jax.common.text import shortened

# A group is what one read costs, and pictures do not compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Nothing is read ahead; an index is read with the block it lies in, not with a megabyte before it.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:0"
_READER_BUFFER = 32 * 1024
_OTHER_OPEN_FILES = 256  # left to the rest of the process when shards are kept open


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture with its camera: intrinsics in shares of the image's sides, OpenCV axes."""

    image: bytes  # a JPEG or PNG
    normalized_fxfycxcy: Float32[np.ndarray, "4"]
    w2c: Float32[np.ndarray, "3 4"]
    timestamp: int  # microseconds


@dataclasses.dataclass(frozen=True)
class Clip:
    """One scene to be written."""

    key: str
    url: str
    frames: Sequence[Frame]


@dataclasses.dataclass(frozen=True)
class Shard:
    """What `finalize` must know of a written shard; `dataclasses.asdict` of it is plain JSON."""

    file: str  # name inside the dataset directory
    keys: tuple[str, ...]  # one a scene, in record order, and so are the next two
    urls: tuple[str, ...]
    num_frames: tuple[int, ...]
    num_bytes: int  # of all records

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Shard":
        """Inverse of `dataclasses.asdict`, also after a passage through JSON."""
        tuples = {name: tuple(values[name]) for name in ("keys", "urls", "num_frames")}
        return cls(**{**values, **tuples})


Splits = Mapping[str, Sequence[Shard]]  # of each all its shards, in order


def shard_path(
    directory: epath.PathLike, name: str, split: str, index: int, count: int
) -> epath.Path:
    """Path of shard `index` of `count`, named as TFDS expects it."""
    if not name.isidentifier() or not split.isidentifier():
        raise UserError(f"name {name!r} and split {split!r} must be letters, digits and _")
    return expand(directory) / f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def _shard_paths(directory: epath.Path, name: str, split: str, count: int) -> list[epath.Path]:
    return [shard_path(directory, name, split, index, count) for index in range(count)]


def write_shard(path: epath.PathLike, clips: Iterable[Clip]) -> Shard:
    """Writes the clips' frames, one record each; the file appears under `path` when it is whole."""
    scenes, num_bytes = [], 0
    open_writer = array_record_module.ArrayRecordWriter
    try:
        with atomic_write(path) as local, closing(open_writer(local, _WRITER_OPTIONS)) as writer:
            for clip in clips:
                for frame in clip.frames:
                    record = _encode(frame)
                    writer.write(record)
                    num_bytes += len(record)
                scenes.append((clip.key, clip.url, len(clip.frames)))
    except RuntimeError as error:  # ArrayRecord's, for a full disk and the like
        raise DatasetError(f"cannot write {path}: {error}") from error
    keys, urls, num_frames = zip(*scenes, strict=True) if scenes else ((), (), ())
    return Shard(epath.Path(path).name, keys, urls, num_frames, num_bytes)


def finalize(directory: epath.PathLike, name: str, splits: Splits) -> None:
    """Writes scene tables and metadata; `dataset_info.json`, the last file, declares it complete.

    Shards are checked to be there under the names that TFDS derives, keys to be unique and no split
    to be empty (DatasetError otherwise).
    """
    directory = expand(directory)
    there = {path.name for path in directory.iterdir()}
    for split, shards in splits.items():
        expected = [path.name for path in _shard_paths(directory, name, split, len(shards))]
        if [shard.file for shard in shards] != expected:
            raise DatasetError(f"{directory}: shards of {split!r} are not {expected[:1]} and on")
        if missing := sorted(set(expected) - there):
            raise DatasetError(f"{directory}: missing shards {missing[:5]}")
        _write_scene_table(directory / f"scenes-{split}.npz", split, shards)
    _write_metadata(directory, name, splits)


def _write_scene_table(path: epath.Path, split: str, shards: Sequence[Shard]) -> None:
    keys = [key for shard in shards for key in shard.keys]
    counts = np.array([count for shard in shards for count in shard.num_frames], np.int64)
    if not counts.sum():
        raise DatasetError(f"split {split!r} of {path.parent} holds no frame")
    if twice := [key for key, times in collections.Counter(keys).items() if times > 1]:
        raise DatasetError(f"split {split!r} of {path.parent} holds {twice[:5]} more than once")
    urls = [url for shard in shards for url in shard.urls]
    texts = np.array(keys, np.str_), np.array(urls, np.str_)
    table = SceneTable(*texts, first_frame=np.cumsum(counts) - counts, num_frames=counts)
    with atomic_write(path) as local, open(local, "wb") as file:
        np.savez_compressed(file, **vars(table))


def _write_metadata(directory: epath.Path, name: str, splits: Splits) -> None:
    """Writes what TFDS knows a dataset directory by: `features.json`, `dataset_info.json`."""
    import tensorflow_datasets as tfds  # takes seconds

    features = {
        "image": tfds.features.Tensor(shape=(), dtype=np.str_),
        "fxfycxcy": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "w2c": tfds.features.Tensor(shape=(3, 4), dtype=np.float32),
        "timestamp": tfds.features.Scalar(dtype=np.int64),
    }
    version, place = tfds.core.Version("1.0.0"), os.fspath(directory)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(name, version, place, module_name=""),
        features=tfds.features.FeaturesDict(features),
        description="Clips of static scenes: one record is one picture with its camera.",
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, filetype_suffix="array_record"
    )
    infos = []
    for split, shards in splits.items():
        lengths = [sum(shard.num_frames) for shard in shards]
        num_bytes = sum(shard.num_bytes for shard in shards)
        fields = {"name": split, "shard_lengths": lengths, "num_bytes": num_bytes}
        infos.append(tfds.core.SplitInfo(**fields, filename_template=template))
    info.set_splits(tfds.core.splits.SplitDict(infos))
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        files = {path.name: path.read_text() for path in epath.Path(folder).iterdir()}
    for file in sorted(files, key=lambda file: file == "dataset_info.json"):  # that one last
        write_text(directory / file, files[file])


def _encode(frame: Frame) -> bytes:
    """The frame as a serialised `tf.Example`, the same bytes every time."""
    example = Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(frame.image)
    feature["fxfycxcy"].float_list.value.extend(frame.normalized_fxfycxcy.tolist())
    feature["w2c"].float_list.value.extend(frame.w2c.ravel().tolist())
    feature["timestamp"].int64_list.value.append(frame.timestamp)
    return example.SerializeToString(deterministic=True)


def _decode(record: bytes) -> Frame:
    feature = Example.FromString(record).features.feature
    return Frame(
        image=feature["image"].bytes_list.value[0],
        normalized_fxfycxcy=np.array(feature["fxfycxcy"].float_list.value, np.float32).reshape(4),
        w2c=np.array(feature["w2c"].float_list.value, np.float32).reshape(3, 4),
        timestamp=feature["timestamp"].int64_list.value[0],
    )


class SplitReader:
    """Random access to the frames of one split of a dataset directory.

    Shards are opened when first needed and stay open, so that a frame costs its own bytes and
    nothing more; the process's limit of open files is raised for that where it must and can be.
    Instances may be pickled (open files are not carried along) and used from several threads.
    Missing or damaged directories, splits and shards raise `DatasetError`, which names them.
    """

    scenes: SceneTable

    def __init__(self, directory: epath.PathLike, split: str):
        self.directory = expand(directory)
        self.split = split
        name, lengths = read_info(self.directory)
        if split not in lengths:
            raise DatasetError(f"{self.directory} has no split {split!r}, only {sorted(lengths)}")
        self._lengths = lengths[split]
        files = _shard_paths(self.directory, name, split, len(self._lengths))
        self._files = [os.fspath(file) for file in files]
        self._ends = np.cumsum(self._lengths)
        self.scenes = read_scene_table(self.directory / f"scenes-{split}.npz")
        there = {path.name for path in self.directory.iterdir()}
        if missing := [file for file in self._files if os.path.basename(file) not in there]:
            raise DatasetError(f"{self.directory} lacks {len(missing)} shards, first {missing[0]}")
        if int(self.scenes.num_frames.sum()) != len(self):
            raise DatasetError(
                f"{self.directory}: scenes-{self.split}.npz counts {self.scenes.num_frames.sum()}"
                f" frames, dataset_info.json {len(self)}"
            )
        self.__setstate__({})

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        # Of two threads that open a shard at once one closes its own again.
        self._reader = functools.lru_cache(_allow_open_files(len(self._files)))(self._open)

    def __len__(self) -> int:
        """Number of frames."""
        return int(self._ends[-1])

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        """Frames by record index, in the order asked for; repeated indices are allowed."""
        records = np.asarray(indices, np.int64).reshape(-1)
        if outside := [int(i) for i in records if not 0 <= i < len(self)]:
            raise IndexError(f"no records {outside} among the {len(self)} of {self.split!r}")
        shards = np.searchsorted(self._ends, records, side="right")
        frames = {}
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            positions = (records[rows] - (self._ends[shard] - self._lengths[shard])).tolist()
            try:
                read = [_decode(record) for record in self._reader(shard).read(positions)]
            except Exception as error:
                file = self._files[shard]
                what = f"records {shortened(positions)} of {file}"
                raise DatasetError(f"cannot read {what}: {shortened(error)}") from error
            frames.update(zip(rows.tolist(), read, strict=True))
        return [frames[row] for row in range(len(records))]

    def _open(self, shard: int) -> Any:
        """An ArrayRecordReader, or what reads alike in a bucket."""
        file, expected = self._files[shard], self._lengths[shard]
        if "://" in file:
            from input_pipeline.bucket_records import BucketRecords  # and fsspec

            reader = BucketRecords(file)
        else:
            reader = array_record_module.ArrayRecordReader(
                file, _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
            )
            if not reader.ok():
                reader.read([0])  # raises what is wrong with the file
        if (found := reader.num_records()) != expected:
            raise UserError(f"it holds {found} records, dataset_info.json counts {expected}")
        return reader

    def close(self) -> None:
        """Closes the open shards; the next read opens what it needs."""
        self._reader.cache_clear()

    def describe(self, index: int) -> str:
        """Where a record lies, for error messages: dataset, shard, scene, frame."""
        row, frame = self.scenes.locate(index)
        file = os.path.basename(self._files[int(np.searchsorted(self._ends, index, side="right"))])
        scene = self.scenes.key[row]
        return f"dataset {self.directory}, shard {file}, scene {scene}, frame {frame}"


def _allow_open_files(shards: int) -> int:
    """How many shards may stay open, after raising this process's limit of open files if needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * shards + _OTHER_OPEN_FILES  # a second reader may live beside this one
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, (soft - _OTHER_OPEN_FILES) // 2)
