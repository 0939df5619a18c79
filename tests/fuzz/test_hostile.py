"""Files made to harm: each ends in a line, within seconds, in bounded memory, and runs nothing."""

import io
import json
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest

from input_pipeline.bucket_records import _varint
from input_pipeline.camera_table import read_camera_table, table_path
from input_pipeline.metadata import read_info, read_scene_table
from input_pipeline.re10k import pixelsplat
from input_pipeline.sampling import read_index
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand, read_json
from lvsm_jax.frozen.lpips import read_tree
from lvsm_jax.frozen.perceptual import load_perceptual
from lvsm_jax.scenes.photograph import Photograph
from lvsm_jax.weights import torch_file
from lvsm_jax.weights.state_dict import read_checkpoint
from tests.fuzz.readers import camera, clip, write_dataset
from tests.fuzz.watch import peak_bytes, watched
from tests.helpers import torch_zip

SECONDS, MEMORY = 10, 700 * 2**20


def refused(read, *arguments) -> str:
    """The error's text."""
    before = peak_bytes()
    with watched(SECONDS), pytest.raises((UserError, OSError)) as caught:
        read(*arguments)
    assert peak_bytes() - before < MEMORY
    text = str(caught.value)
    assert 0 < len(text) < 1500 and "\n" not in text and text.isprintable()
    return text


# A pair of the object before it with itself, so often: 2^depth elements in as many bytes.
def doubled(depth: int) -> bytes:
    return b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(depth))


DEEP = doubled(60)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n%bX\x03\x00\x00\x00cpuK\x01tQ"

PICKLES = {
    "a key of nested tuples": b"}" + DEEP + b"Ns",
    "many of them": b"}(" + DEEP + b"NtNs",
    "an ordered dict of them": b"ccollections\nOrderedDict\n](" + DEEP + b"N\x86e\x85R",
    "a set of them": b"\x8f(" + DEEP + b"\x90",
    "a frozen set": b"(" + DEEP + b"\x91",
    "a storage called so": TENSOR + b"(" + STORAGE % DEEP + b"K\x00)))NtR",
    "a persistent id of them": DEEP + b"Q",
    "sizes of them": TENSOR
    + b"("
    + STORAGE % b"X\x01\x00\x00\x000"
    + b"K\x00"
    + DEEP
    + b"h\x00Nccollections\nOrderedDict\n)RtR",
    "keys with one hash": b"}(\x8a\x09" + bytes(8) + b"\x20Nu",
    "a number of a megabyte": b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20,
    "many lists in one another": b"]q\x00" * 3000 + b"a" * 2999,
    "a memo index": b"]r\xff\xff\xff\x7f",
    "text longer than the file": b"X\xff\xff\xff\x7fa",
    "text of 2^63 bytes": b"\x8d" + b"\xff" * 7 + b"\x7fa",
    "a global": b"cos\nsystem\nX\x04\x00\x00\x00true\x85R",
    "a global on the stack": b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R",
    "the same list in many calls": b"ccollections\nOrderedDict\nq\x01]q\x00("
    + b"X\x01\x00\x00\x00aN\x86" * 2000
    + b"e"
    + b"h\x01h\x00\x85R" * 2000,
    "an instruction without operands": b"s",
    "nothing": b"",
}


@pytest.mark.parametrize("body", PICKLES.values(), ids=PICKLES)
def test_pickles(tmp_path, body):
    torch_zip.write(tmp_path / "x.pt", b"\x80\x02" + body + b".", [])
    assert "x.pt" in refused(read_checkpoint, tmp_path / "x.pt")
    refused(lambda: pixelsplat.read_chunk(tmp_path / "x.pt", verify=True))
    (tmp_path / "tree").write_bytes(b"\x80\x04" + body + b".")
    refused(read_tree, tmp_path / "tree")


def test_nested_tuples_as_values_are_read_at_once(tmp_path):
    torch_zip.write(tmp_path / "x.pt", b"\x80\x02" + DEEP + b".", [])
    with watched(SECONDS):
        assert len(torch_file.load(tmp_path / "x.pt")) == 2
    refused(read_checkpoint, tmp_path / "x.pt")


def written(path, *entries):
    """A zip of entries: name, content, compression."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, compression in entries:
            archive.writestr(name, content, compression, compresslevel=1)
    return path


@pytest.mark.parametrize("verify", [False, True])
def test_zips_that_swell(tmp_path, verify):
    bomb = bytes(100 * 2**20)
    for data, method, message in (
        (bomb, zipfile.ZIP_DEFLATED, "inflate to"),
        (b"x", zipfile.ZIP_BZIP2, "method"),
    ):
        file = written(tmp_path / "x.pt", ("a/data.pkl", data, method))
        assert file.stat().st_size < 2**20
        with watched(SECONDS), pytest.raises(UserError, match=message):
            torch_file.load(file, verify=verify)
    # One that says it were small: as many bytes are taken as it says.
    file = written(tmp_path / "x.pt", ("a/data.pkl", bomb, zipfile.ZIP_DEFLATED))
    data = file.read_bytes().replace(struct.pack("<I", len(bomb)), struct.pack("<I", 20))
    file.write_bytes(data)
    refused(lambda: torch_file.load(file, verify=verify))


def test_many_entries_of_the_same_bytes(tmp_path):
    file = written(tmp_path / "x.pt", ("a/data.pkl", bytes(2**20), zipfile.ZIP_STORED))
    data = file.read_bytes()
    start = data.index(b"PK\x01\x02")
    entry, end = (
        data[start : data.index(b"PK\x05\x06")],
        bytearray(data[data.index(b"PK\x05\x06") :]),
    )
    end[8:12] = struct.pack("<HH", 5000, 5000)
    end[12:16] = struct.pack("<I", 5000 * len(entry))
    file.write_bytes(data[:start] + entry * 5000 + end)
    refused(lambda: torch_file.load(file, verify=True))


def test_a_chunk_that_repeats_itself(tmp_path):
    one = clip("a")
    large = one | {"images": [np.zeros(2**20, np.uint8)] * 3}
    torch_zip.save(tmp_path / "x.torch", [large] * 200)
    assert "twice" in refused(lambda: pixelsplat.read_chunk(tmp_path / "x.torch", verify=True))


def test_weights_that_repeat_themselves(tmp_path):
    views = {
        f"w{i}": torch_zip.Tensor(np.zeros(4, np.float32), 0, (2**28,), (0,)) for i in range(3)
    }
    torch_zip.save(tmp_path / "x.pt", views)
    assert "many times" in refused(read_checkpoint, tmp_path / "x.pt")


JSONS = {
    "nested": b"[" * 10**5,
    "nested objects": b'{"a":' * 10**5,
    "a long number": b'{"a": ' + b"9" * 10**6 + b"}",
    "no text": b"\xff\xfe{}",
    "a list": b"[1]",
    "a number": b"1",
    "nothing": b"",
}


@pytest.mark.parametrize("content", JSONS.values(), ids=JSONS)
def test_json(tmp_path, content):
    write_dataset(tmp_path)
    for name in ("dataset_info.json", "x.json"):
        (tmp_path / name).write_bytes(content)
    assert "x.json" in refused(read_json, tmp_path / "x.json")
    assert "x.json" in refused(read_index, tmp_path / "x.json")
    told = refused(read_info, expand(tmp_path))
    assert "dataset_info.json" in told and "UserError" not in told


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc"},
        {"name": 3},
        {"splits": 3},
        {"splits": [{"name": "train", "shardLengths": "123"}]},
        {"splits": [{"name": "train", "shardLengths": ["9" * 30]}]},
        {"splits": [{"name": "train", "shardLengths": ["-1"]}]},
        {"splits": [{"name": "train", "shardLengths": [[]]}]},
        {"splits": [{"name": "\x1b[2J", "shardLengths": ["1"]}]},
    ],
)
def test_metadata_of_a_dataset(tmp_path, change):
    good = {"name": "tiny", "splits": [{"name": "train", "shardLengths": ["1"]}]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(good | change))
    assert "dataset_info.json" in refused(read_info, expand(tmp_path))


def test_scene_tables(tmp_path):
    def table(**columns) -> None:
        good = {"key": np.array(["a"]), "url": np.array(["u"])}
        good |= {"first_frame": np.zeros(1, np.int64), "num_frames": np.ones(1, np.int64)}
        np.savez_compressed(tmp_path / "t.npz", **good | columns)

    table()
    read_scene_table(expand(tmp_path / "t.npz"))

    class Code:
        def __reduce__(self):
            return exec, ("import os; os.system('true')",)

    for columns in (
        {"key": np.array([Code()], object)},
        {"key": np.zeros(12 * 2**20, np.int64)},
        {"num_frames": np.full(1, 2**62)},
        {"num_frames": np.full(1, -1)},
        {"first_frame": np.full(1, 7)},
        {"url": np.array(["u", "v"])},
        {"num_frames": np.ones(1, np.float32)},
    ):
        table(**columns)
        assert "t.npz" in refused(read_scene_table, expand(tmp_path / "t.npz"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (2**40,)}
    )
    table()
    with zipfile.ZipFile(tmp_path / "t.npz", "a") as archive, pytest.warns(UserWarning):
        archive.writestr("num_frames.npy", header.getvalue())
    refused(read_scene_table, expand(tmp_path / "t.npz"))


def test_camera_tables(tmp_path):
    def table(**columns) -> None:
        good = {"w2c": np.zeros((1, 3, 4), np.float32)}
        good |= {"normalized_fxfycxcy": np.full((1, 4), 0.5, np.float32)}
        np.savez_compressed(table_path(tmp_path, "test"), **good | columns)

    table()
    read_camera_table(tmp_path, "test", 1)

    class Code:
        def __reduce__(self):
            return exec, ("import os; os.system('true')",)

    for columns in (
        {"w2c": np.array([Code()], object)},
        {"w2c": np.zeros((2**22, 3, 4), np.float32)},
        {"w2c": np.full((1, 3, 4), np.nan, np.float32)},
        {"w2c": np.full((1, 3, 4), 1e30, np.float32)},
        {"w2c": np.zeros((1, 3, 4))},
        {"normalized_fxfycxcy": np.zeros((1, 4), np.float32)},
        {"normalized_fxfycxcy": np.full((2, 4), 0.5, np.float32)},
    ):
        table(**columns)
        assert "cameras-test.npz" in refused(read_camera_table, tmp_path, "test", 1)


def test_numbers_of_records_end():
    with watched(SECONDS), pytest.raises(UserError):
        _varint(b"\xff" * 2**20, 0)


def png(width: int, height: int, rows: bytes) -> bytes:
    def part(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = part(b"IHDR", size) + part(b"IDAT", zlib.compress(rows, 9)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (9000, 9000), (48, 32)])
def test_pictures_that_swell(tmp_path, size):
    (tmp_path / "x.png").write_bytes(png(*size, bytes(10 * 2**20 if size[0] > 48 else 7)))
    assert "x.png" in refused(Photograph.open, tmp_path / "x.png", camera())


# MAT files of MATLAB, which hold VGG-19.


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, shape: tuple[int, ...], body: bytes, name: bytes = b"layers") -> bytes:
    size = struct.pack(f"<{len(shape)}i", *shape)
    flags = element(6, struct.pack("<II", kind, 0))
    return element(14, flags + element(5, size) + element(1, name) + body)


def nested_cells(depth: int) -> bytes:
    flags = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<2i", 1, 1))
    inner, size = [], 0
    for level in range(depth):
        inner.append(flags + element(1, b"layers" if level + 1 == depth else b""))
        size += 8 + len(inner[-1])
        inner.append(struct.pack("<II", 14, size - 8))
    return b"".join(reversed(inner))


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(packed)) + packed


FIELDS = element(5, struct.pack("<i", 8)) + element(1, b"weights\0")
MATS = {
    "cells in one another": nested_cells(100_000),
    "the same, compressed": compressed(nested_cells(100_000)),
    "zeros": compressed(matrix(6, (1, 4 * 10**7), element(9, bytes(32 * 10**7)))),
    "empty cells": compressed(matrix(1, (10**6, 1), struct.pack("<II", 14, 0) * 10**6)),
    "many cells that are not there": matrix(1, (2**31 - 1, 1), b""),
    "more than there are numbers for": matrix(1, (2**31 - 1,) * 30, b""),
    "a negative number of them": matrix(1, (-1, -1), b""),
    "many structs": matrix(2, (2**30, 1), FIELDS),
    "structs of no elements": matrix(2, (2**31 - 1, 0), FIELDS),
    "a struct without names": matrix(2, (1, 1), element(5, bytes(4)) + element(1, b"")),
    "a sparse matrix": matrix(5, (2**31 - 1, 2**31 - 1), element(5, b"") * 2),
    "an object": matrix(3, (1, 1), element(1, b"os") + FIELDS),
    "opaque data": matrix(17, (1, 1), b""),
    "numbers of an unknown kind": matrix(6, (1, 1), element(99, bytes(8))),
    "a size that is no number": element(14, element(6, bytes(8)) + element(9, bytes(16))),
    "another variable": matrix(6, (1, 1), element(9, bytes(8)), b"meta"),
    "another kind of element": element(9, bytes(800)),
    "a size beyond the file": struct.pack("<II", 14, 2**32 - 1) + bytes(80),
    "a compressed one of it": struct.pack("<II", 15, 2**32 - 1) + b"x\x9c" + bytes(80),
}


@pytest.mark.parametrize("body", MATS.values(), ids=MATS)
def test_mat_files(tmp_path, body):
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    (tmp_path / "vgg.mat").write_bytes(header + body)
    assert "vgg.mat does not hold MatConvNet's VGG-19" in refused(
        load_perceptual, tmp_path / "vgg.mat"
    )


def test_safetensors_of_other_sizes(tmp_path):
    for start in (2**63, 2**32, 100):
        (tmp_path / "x").write_bytes(struct.pack("<Q", start) + b"{}")
        refused(read_checkpoint, tmp_path / "x")


def test_what_pickle_itself_would_do(tmp_path):
    """The watch sees what it is to see."""
    data = pickle.dumps({"a": 1}.keys.__self__.__class__)
    with pytest.raises(AssertionError, match="reading ran"), watched(SECONDS):
        pickle.loads(data)
