"""The dataset directory: what is written is read, frame by frame, at the price of the frames."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath

from input_pipeline import bucket_records, storage
from lvsm_jax.common import files

NAME = "tiny"


def make_clip(key: str, frames: int, rng: random.Random) -> storage.Clip:
    return storage.Clip(
        key=key,
        url=f"https://example.com/{key}",
        frames=[
            storage.Frame(
                image=rng.randbytes(rng.randint(20_000, 60_000)) + b"\0\0",
                normalized_fxfycxcy=np.array([rng.random() for _ in range(4)], np.float32),
                w2c=np.array([[rng.random() for _ in range(4)] for _ in range(3)], np.float32),
                timestamp=(1 << 40) + i,
            )
            for i in range(frames)
        ],
    )


def make_splits() -> dict[str, list[list[storage.Clip]]]:
    rng = random.Random(0)
    train = [[make_clip(f"t{s}{i}", 5 + i, rng) for i in range(n)] for s, n in enumerate([3, 0, 2])]
    return {"train": train, "test": [[make_clip("only", 12, rng)]]}


def write(directory, splits=None) -> dict[str, list[storage.Shard]]:
    epath.Path(directory).mkdir(parents=True, exist_ok=True)
    shards = {
        split: [
            storage.write_shard(storage.shard_path(directory, NAME, split, i, len(parts)), clips)
            for i, clips in enumerate(parts)
        ]
        for split, parts in (splits or make_splits()).items()
    }
    storage.finalize(directory, NAME, shards)
    return shards


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset")
    write(directory)
    return directory


@pytest.fixture(scope="module")
def frames():
    return [frame for part in make_splits()["train"] for clip in part for frame in clip.frames]


def assert_same(frame: storage.Frame, expected: storage.Frame) -> None:
    assert frame.image == expected.image
    np.testing.assert_array_equal(frame.normalized_fxfycxcy, expected.normalized_fxfycxcy)
    np.testing.assert_array_equal(frame.w2c, expected.w2c)
    assert frame.w2c.dtype == frame.normalized_fxfycxcy.dtype == np.float32
    assert frame.timestamp == expected.timestamp


def test_frames_come_back_in_the_order_asked_for(dataset, frames):
    reader = storage.SplitReader(dataset, "train")
    assert len(reader) == len(frames) == 29
    indices = [*range(28, -1, -1), 3, 3]
    for frame, index in zip(reader.frames(indices), indices, strict=True):
        assert_same(frame, frames[index])
    assert reader.frames([]) == []
    with pytest.raises(IndexError, match=r"\[-1, 29\] among the 29"):
        reader.frames([-1, 2, 29])


def test_scene_table_and_descriptions(dataset):
    reader = storage.SplitReader(dataset, "train")
    scenes = reader.scenes
    assert scenes.key.tolist() == ["t00", "t01", "t02", "t20", "t21"]
    assert scenes.url[3] == "https://example.com/t20"
    assert scenes.num_frames.tolist() == [5, 6, 7, 5, 6]
    assert scenes.first_frame.tolist() == [0, 5, 11, 18, 23]
    assert [scenes.locate(i) for i in (0, 4, 5, 28)] == [(0, 0), (0, 4), (1, 0), (4, 5)]
    assert reader.describe(20) == (
        f"dataset {dataset}, shard tiny-train.array_record-00002-of-00003, scene t20, frame 2"
    )


def test_tfds_reads_the_directory_without_tensorflow(dataset, frames):
    program = """if True:
        import hashlib, sys
        import tensorflow_datasets as tfds
        source = tfds.builder_from_directory(sys.argv[1]).as_data_source("train")
        for i in range(len(source)):
            frame = source[i]
            print(hashlib.sha256(frame["image"]).hexdigest(), frame["timestamp"],
                  frame["w2c"].tobytes().hex(), frame["fxfycxcy"].tobytes().hex())
        from input_pipeline import storage
        storage.SplitReader(sys.argv[1], "train").frames([3])
        assert not {"tensorflow", "jax", "torch"} & set(sys.modules)
    """
    lines = subprocess.check_output([sys.executable, "-c", program, str(dataset)], text=True)
    assert lines.splitlines() == [
        f"{hashlib.sha256(f.image).hexdigest()} {f.timestamp} {f.w2c.tobytes().hex()}"
        f" {f.normalized_fxfycxcy.tobytes().hex()}"
        for f in frames
    ]


def test_writing_is_deterministic_and_shards_survive_json(dataset, tmp_path):
    for shards in write(tmp_path).values():
        for shard in shards:
            assert (tmp_path / shard.file).read_bytes() == (dataset / shard.file).read_bytes()
            text = json.dumps(dataclasses.asdict(shard))
            assert storage.Shard.from_json(json.loads(text)) == shard


def bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes through /proc")
def test_eight_frames_cost_their_bytes_and_little_more(tmp_path):
    rng = random.Random(1)
    write(tmp_path, {"train": [[make_clip(f"{s}{i}", 60, rng) for i in range(3)] for s in "ab"]})
    reader = storage.SplitReader(tmp_path, "train")
    reader.frames([0, len(reader) - 1])
    counting = -(bytes_read() - bytes_read())
    for scene in range(len(reader.scenes)):
        positions = sorted(rng.sample(range(60), 8))
        before = bytes_read()
        frames = reader.frames([int(reader.scenes.first_frame[scene]) + p for p in positions])
        cost = bytes_read() - before - counting
        assert cost <= 1.02 * sum(len(frame.image) for frame in frames)


def read_in_worker(reader: storage.SplitReader, index: int) -> storage.Frame:
    return reader.frames([index])[0]


def test_readers_travel_to_processes_and_threads(dataset, frames):
    reader = storage.SplitReader(dataset, "train")
    reader.frames([0])
    assert len(pickle.dumps(reader)) < 10_000
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert_same(pool.submit(read_in_worker, reader, 20).result(), frames[20])
    with futures.ThreadPoolExecutor(8) as pool:
        for index, frame in enumerate(pool.map(lambda i: reader.frames([i])[0], range(29))):
            assert_same(frame, frames[index])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_more_files_stay_open_than_allowed(dataset, frames, monkeypatch):
    monkeypatch.setattr(storage, "_allow_open_files", lambda shards: 1)
    reader = storage.SplitReader(dataset, "train")
    before = open_files()
    for index in (0, 20, 1, 21):
        assert_same(reader.frames([index])[0], frames[index])
        assert open_files() == before + 1
    reader.close()
    assert open_files() == before
    monkeypatch.undo()
    reader = storage.SplitReader(dataset, "train")
    reader.frames([0, 20])
    assert open_files() == before + 2


def test_the_limit_of_open_files_is_raised_for_many_shards():
    program = (
        "import resource; from input_pipeline import storage\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 4000))\n"
        "print(storage._allow_open_files(5), storage._allow_open_files(1000),\n"
        "      storage._allow_open_files(5000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.split() == ["22", "1000", "1872", "4000"]


def test_incomplete_and_damaged_datasets_are_named(dataset, tmp_path):
    with pytest.raises(storage.DatasetError, match=r"no dataset directory .*nowhere"):
        storage.SplitReader(tmp_path / "nowhere", "train")
    with pytest.raises(storage.DatasetError, match=r"has no dataset_info.json"):
        storage.SplitReader(tmp_path, "train")
    with pytest.raises(storage.DatasetError, match=r"no split 'val', only \['test', 'train'\]"):
        storage.SplitReader(dataset, "val")

    shards = write(tmp_path)
    path = tmp_path / shards["train"][2].file
    whole = path.read_bytes()
    damage = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:70_000] + bytes([whole[70_000] ^ 1]) + whole[70_001:],
        "another": (tmp_path / shards["test"][0].file).read_bytes(),
    }
    for kind, data in damage.items():
        path.write_bytes(data)
        reader = storage.SplitReader(tmp_path, "train")
        with pytest.raises(
            storage.DatasetError, match=r"cannot read records .*-00002-of-00003: .+"
        ):
            reader.frames([18, 19, 20])
        assert len(reader.frames([0])) == 1, kind
    path.unlink()
    with pytest.raises(storage.DatasetError, match=r"lacks 1 shards, first .*-00002-of-00003"):
        storage.SplitReader(tmp_path, "train")
    with pytest.raises(storage.DatasetError, match=r"missing shards .*-00002-of-00003"):
        storage.finalize(tmp_path, NAME, shards)


def test_a_leading_tilde_is_the_home_directory(dataset, monkeypatch):
    monkeypatch.setenv("HOME", str(dataset.parent))
    assert len(storage.SplitReader(f"~/{dataset.name}", "train")) == 29


def test_finalize_refuses_what_would_not_be_a_dataset(tmp_path):
    rng = random.Random(0)
    twice = {"train": [[make_clip("a", 2, rng)], [make_clip("a", 2, rng)]]}
    with pytest.raises(storage.DatasetError, match=r"holds \['a'\] more than once"):
        write(tmp_path / "twice", twice)
    assert not (tmp_path / "twice" / "dataset_info.json").exists()
    with pytest.raises(storage.DatasetError, match=r"'train' .* holds no frame"):
        write(tmp_path / "empty", {"train": [[]]})
    shards = write(tmp_path / "good")
    with pytest.raises(storage.DatasetError, match="shards of 'train'"):
        storage.finalize(tmp_path / "good", NAME, {"train": shards["train"][:2]})
    with pytest.raises(ValueError, match="'no-name'"):
        storage.shard_path(tmp_path, "no-name", "train", 0, 1)


def test_a_file_is_whole_or_absent(tmp_path):
    (tmp_path / "old").write_text("old")
    for name in ("new", "old"):
        with pytest.raises(RuntimeError), files.atomic_write(tmp_path / name) as local:
            pathlib.Path(local).write_text("half")
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


BUCKET = """
import fsspec, sys
from fsspec.implementations.memory import MemoryFileSystem

class Bucket(MemoryFileSystem):
    protocol, store, pseudo_dirs, transferred = ("s3",), {}, [""], 0
    def cat_file(self, path, start=None, end=None, **options):
        data = super().cat_file(path, start, end, **options)
        Bucket.transferred += len(data)
        return data
    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("s3://").strip("/")

fsspec.register_implementation("s3", Bucket, clobber=True)
sys.path.insert(0, sys.argv[1])
import test_storage
from input_pipeline import storage
directory = "s3://bucket/dataset"
test_storage.write(directory)
reader = storage.SplitReader(directory, "train")
frames = [f for part in test_storage.make_splits()["train"] for c in part for f in c.frames]
for index, frame in enumerate(reader.frames(range(29))):
    test_storage.assert_same(frame, frames[index])
before = Bucket.transferred
used = sum(len(frame.image) for frame in reader.frames([20, 3, 4, 27, 11, 9]))
print((Bucket.transferred - before) / used)
assert not [path for path in Bucket.store if path.endswith(".tmp")], list(Bucket.store)
assert "tensorflow" not in sys.modules
"""


def test_a_bucket_holds_datasets_and_sends_only_the_frames_asked_for():
    here = os.path.dirname(__file__)
    environment = os.environ | {"EPATH_USE_TF": "0"}
    command = [sys.executable, "-c", BUCKET, here]
    output = subprocess.check_output(command, text=True, env=environment)
    assert 1 <= float(output) < 1.02


@pytest.mark.parametrize("sizes", [[0, 1, 2], [65_496, 65_400, 65_536, 200_000], [127, 128] * 700])
def test_ranges_read_what_array_record_reads(tmp_path, sizes):
    path = tmp_path / "a.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), storage._WRITER_OPTIONS)
    records = [random.Random(i).randbytes(size) for i, size in enumerate(sizes)]
    for record in records:
        writer.write(record)
    writer.close()
    reader = bucket_records.BucketRecords(f"file://{path}")
    assert reader.num_records() == len(records)
    assert reader.read(range(len(records))) == records
    assert reader.read([2, 0]) == [records[2], records[0]]
    data = path.read_bytes()
    for damaged in (b"", data[:-7], data[: len(data) - (1 << 16)], bytes(len(data))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"truncated|chunk|block"):
            bucket_records.BucketRecords(f"file://{path}")


def test_ranges_do_not_pretend_to_read_compressed_files(tmp_path):
    path = tmp_path / "a.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,brotli:6")
    for _ in range(3):
        writer.write(bytes(10_000))
    writer.close()
    with pytest.raises(ValueError, match="uncompressed"):
        bucket_records.BucketRecords(f"file://{path}").read([1])
