"""The two files by which TFDS knows a dataset directory: `features.json`, `dataset_info.json`."""

import os
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from lvsm_jax.common.files import write_text


def write(
    directory: epath.Path,
    name: str,
    shard_lengths: Mapping[str, Sequence[int]],
    num_bytes: Mapping[str, int],
) -> None:
    """Describes the splits by the frames in each of their shards and the bytes of all of them.

    `dataset_info.json` is written last: where it is, the dataset is complete.
    """
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
        description="Clips of static scenes: one record is one JPEG frame with its camera.",
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=num_bytes[split],
            filename_template=template,
        )
        for split, lengths in shard_lengths.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        files = {path.name: path.read_text() for path in epath.Path(folder).iterdir()}
    last = files.pop("dataset_info.json")
    for file, text in files.items():
        write_text(directory / file, text)
    write_text(directory / "dataset_info.json", last)
