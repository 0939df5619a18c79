"""The restricted reader of torch.save files: right values, and nothing but values."""

import collections
import os
import pickle
import random
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lvsm_jax.weights import torch_file
from lvsm_jax.weights.torch_file import TorchFileError
from tests.helpers import torch_zip

DTYPES = [*torch_zip._STORAGES]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(0, 2, (3, 4)) if name == "bool" else rng.normal(size=(3, 4)) * 9
        ).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        for name in DTYPES
    }


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_dtype_and_container_comes_back(tmp_path, compression):
    plain = {"list": [1, -2, 2**70, 1.5, None, True], "tuple": (1, 2, 3, 4, ("é", ())), 5: "five"}
    torch_zip.save(tmp_path / "a.pt", {"arrays": arrays(), "plain": plain}, compression=compression)
    read = torch_file.load(tmp_path / "a.pt", verify=True)
    assert read["plain"] == plain
    for name, array in arrays().items():
        assert read["arrays"][name].dtype == array.dtype
        np.testing.assert_array_equal(read["arrays"][name], array)


def test_views_share_their_storage_and_cannot_be_written(tmp_path):
    base = np.arange(24, dtype=np.float32)
    views = {
        "whole": torch_zip.Tensor(base, 0, (4, 6), (6, 1)),
        "transposed": torch_zip.Tensor(base, 0, (6, 4), (1, 6)),
        "slice": torch_zip.Tensor(base, 7, (2, 3), (6, 2)),
        "expanded": torch_zip.Tensor(base, 5, (3, 2), (0, 1)),
        "scalar": torch_zip.Tensor(base, 23, (), ()),
        "empty": torch_zip.Tensor(base, 0, (0, 7), (7, 1)),
    }
    torch_zip.save(tmp_path / "a.pt", views)
    read = torch_file.load(tmp_path / "a.pt")
    grid = base.reshape(4, 6)
    expected = {
        "whole": grid,
        "transposed": grid.T,
        "slice": grid[1:3, 1::2],
        "expanded": np.stack([base[5:7]] * 3),
        "scalar": base[23],
        "empty": np.empty((0, 7)),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
    assert np.shares_memory(read["whole"], read["transposed"])
    with pytest.raises(ValueError, match="read-only"):
        read["whole"][0, 0] = 1


def test_a_large_file_costs_no_memory_before_it_is_used(tmp_path):
    torch_zip.save(tmp_path / "a.pt", {"w": np.zeros(64 << 20, np.uint8)})
    program = (
        "import resource, sys; from lvsm_jax import torch_file\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); w = torch_file.load(sys.argv[1])['w']\n"
        "print(w.nbytes, (peak() - before) * 1024, 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.pt")]
    size, growth, jax = subprocess.check_output(command, text=True).split()
    assert int(size) == 64 << 20
    assert int(growth) < 8 << 20
    assert jax == "False"


def test_module_state_and_parameters(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    parameter = torch_zip.Call(
        torch_zip.Global("torch._utils", "_rebuild_parameter"),
        (weight, True, torch_zip.Call(torch_zip.Global("collections", "OrderedDict"), ())),
    )
    ordered = torch_zip.Call(
        torch_zip.Global("collections", "OrderedDict"),
        ([["weight", parameter]],),
        state={"_metadata": {"": {"version": 1}}},
    )
    size = torch_zip.Call(torch_zip.Global("torch", "Size"), ((2, 3),))
    value = {"model": ordered, "size": size, "dtype": torch_zip.Global("torch", "bfloat16")}
    torch_zip.save(tmp_path / "a.pt", value)
    read = torch_file.load(tmp_path / "a.pt")
    assert type(read["model"]) is dict
    np.testing.assert_array_equal(read["model"]["weight"], weight)
    assert read["size"] == (2, 3)
    assert read["dtype"] == ml_dtypes.bfloat16


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {Hostile.witness}",)


def test_code_is_refused_by_name_and_not_run(tmp_path):
    Hostile.witness = tmp_path / "it ran".replace(" ", "_")
    torch_zip.write(tmp_path / "a.pt", pickle.dumps([1, Hostile()], protocol=2), [])
    with pytest.raises(TorchFileError, match=r"a\.pt: refused the global posix\.system"):
        torch_file.load(tmp_path / "a.pt")
    assert not Hostile.witness.exists()


@pytest.mark.parametrize(
    "target",
    [
        torch_zip.Global("torch._utils", "_rebuild_tensor_v2"),
        torch_zip.Global("collections", "OrderedDict"),
        torch_zip.Global("torch", "FloatStorage"),
        np.zeros(3, np.float32),
    ],
)
@pytest.mark.parametrize("state", [{"name": "x"}, (None, {"name": "x", "__setstate__": "x"})])
def test_a_pickle_cannot_set_attributes(tmp_path, target, state):
    pickled, storages = torch_zip.dumps([target])
    _, _, body = torch_zip.dumps(state)[0].partition(b"\x80\x02")
    # The list's one element, then the state on top of it and BUILD, before APPEND.
    pickled = pickled.removesuffix(b"a.") + body.removesuffix(b".") + b"ba."
    torch_zip.write(tmp_path / "a.pt", pickled, storages)
    before = str(torch_file._GLOBALS)
    with pytest.raises(TorchFileError):
        torch_file.load(tmp_path / "a.pt")
    assert str(torch_file._GLOBALS) == before
    torch_zip.save(tmp_path / "b.pt", [np.ones(3, np.float32)])
    np.testing.assert_array_equal(torch_file.load(tmp_path / "b.pt")[0], np.ones(3))


BASE = np.arange(10, dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch_zip.Tensor(BASE, 1, (10,), (1,)), "storage of 10 elements"),
        (torch_zip.Tensor(BASE, 0, (2**62, 2), (2**62, 1)), "storage of 10 elements"),
        (torch_zip.Tensor(BASE, 0, (2**62, 2**62), (0, 0)), ""),
        (torch_zip.Tensor(BASE, -1, (2,), (1,)), "offset -1"),
        (torch_zip.Tensor(BASE, 0, (-2,), (1,)), r"shape \(-2,\)"),
        (torch_zip.Tensor(BASE, 3, (2,), (-1,)), r"strides \(-1,\)"),
        (torch_zip.Tensor(BASE, 0, (2, 2), (1,)), r"shape \(2, 2\), strides \(1,\)"),
        (torch_zip.Tensor(BASE, "0", (2,), (1,)), ""),
        (torch_zip.Call(torch_zip.Global("torch", "Size"), (1, 2)), ""),
        (torch_zip.Global("collections", "OrderedDict"), "where a value is expected"),
        (torch_zip.Global("builtins", "eval"), "builtins.eval"),
        (torch_zip.Global("torch", "QInt8Storage"), "torch.QInt8Storage"),
        (collections.Counter("ab"), "collections.Counter"),
        ({1, 2}, "set"),
    ],
)
def test_what_is_not_plain_data_is_refused(tmp_path, value, message):
    torch_zip.save(tmp_path / "a.pt", {"x": value})
    with pytest.raises(TorchFileError, match=rf"a\.pt: .*{message}"):
        torch_file.load(tmp_path / "a.pt")


def test_cycles_and_huge_memo_indices_are_refused(tmp_path):
    cycle = []
    cycle.append(cycle)
    torch_zip.save(tmp_path / "cycle.pt", cycle)
    with pytest.raises(TorchFileError, match="recursion"):
        torch_file.load(tmp_path / "cycle.pt")
    torch_zip.write(tmp_path / "memo.pt", b"\x80\x02]r\xff\xff\xff\x7f.", [])
    with pytest.raises(TorchFileError, match="memo index"):
        torch_file.load(tmp_path / "memo.pt")


def test_damaged_files_say_what_is_wrong(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(FileNotFoundError):
        torch_file.load(path)
    for data, message in {
        b"": "not a zip",
        b"hello": "not a zip",
        torch_file._LEGACY_MAGIC + b"rest": "before 1.6",
    }.items():
        path.write_bytes(data)
        with pytest.raises(TorchFileError, match=rf"a\.pt: .*{message}"):
            torch_file.load(path)
    torch_zip.save(path, arrays(), byteorder=b"big")
    with pytest.raises(TorchFileError, match="little-endian"):
        torch_file.load(path)
    pickled, storages = torch_zip.dumps({"x": np.arange(9), "y": np.arange(100, dtype=np.uint8)})
    torch_zip.write(path, pickled, storages[:1])
    with pytest.raises(TorchFileError, match="archive/data/1"):
        torch_file.load(path)
    torch_zip.write(path, pickled, [storages[0], storages[1][:99]])
    with pytest.raises(TorchFileError, match="storage 1 has 99 bytes of 100"):
        torch_file.load(path)
    torch_zip.write(path, pickled, storages)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-30])
    with pytest.raises(TorchFileError, match="truncated"):
        torch_file.load(path)
    data[data.index(bytes(range(100))) + 50] ^= 1
    path.write_bytes(data)
    assert torch_file.load(path)["y"][50] == 50 ^ 1
    with pytest.raises(TorchFileError, match="entry archive/data/1 does not have its checksum"):
        torch_file.load(path, verify=True)


def test_random_damage_gives_data_or_the_one_error(tmp_path):
    value = {"a": arrays(), "o": torch_zip.Call(torch_zip.Global("collections", "OrderedDict"), ())}
    torch_zip.save(tmp_path / "a.pt", value)
    good = (tmp_path / "a.pt").read_bytes()
    pickled, storages = torch_zip.dumps(value)
    rng = random.Random(0)
    outcomes = collections.Counter()
    for round_ in range(1500):
        data = bytearray(good if round_ % 2 else pickled)
        for _ in range(rng.choice([1, 1, 2, 5, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        if round_ % 2:
            (tmp_path / "b.pt").write_bytes(data)
        else:
            torch_zip.write(tmp_path / "b.pt", bytes(data), storages)
        try:
            torch_file.load(tmp_path / "b.pt")
            outcomes["read"] += 1
        except TorchFileError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 50
    assert outcomes["refused"] > 50


def test_agrees_with_torch_both_ways(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch_zip.save(tmp_path / "ours.pt", arrays())
    for name, tensor in torch.load(tmp_path / "ours.pt", weights_only=True).items():
        expected = arrays()[name].astype(np.float32) if name == "bfloat16" else arrays()[name]
        np.testing.assert_array_equal(tensor.float() if name == "bfloat16" else tensor, expected)

    base = torch.arange(24.0).reshape(4, 6)
    value = {
        "linear": torch.nn.Linear(3, 2).state_dict(),
        "parameter": torch.nn.Parameter(base),
        "views": [base.t(), base[1:3, 1::2], base[0].expand(3, 6), base[2, 3], base[:0]],
        "dtypes": [
            base.to(dtype)
            for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32)
        ],
        "others": [1, 2.5, "x", None, True, (1, 2, 3, 4), torch.Size([2, 3])],
    }
    torch.save(value, tmp_path / "theirs.pt")
    read = torch_file.load(tmp_path / "theirs.pt", verify=True)
    again = torch.load(tmp_path / "theirs.pt", weights_only=True)
    for name, tensor in again["linear"].items():
        np.testing.assert_array_equal(read["linear"][name], tensor)
    np.testing.assert_array_equal(read["parameter"], again["parameter"].detach())
    for ours, theirs in zip(read["views"], again["views"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(read["dtypes"], again["dtypes"], strict=True):
        np.testing.assert_array_equal(ours.astype(np.float32), theirs.float())
    assert read["others"] == again["others"]


def test_real_chunks_agree_with_torch(shared_data):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for path in sorted(shared_data.glob("re10k_sample/*/*.torch")):
        ours, theirs = torch_file.load(path), torch.load(path, weights_only=True)
        assert len(ours) == len(theirs)
        for clip, expected in zip(ours, theirs, strict=True):
            assert clip.keys() == expected.keys()
            assert (clip["key"], clip["url"]) == (expected["key"], expected["url"])
            np.testing.assert_array_equal(clip["cameras"], expected["cameras"])
            np.testing.assert_array_equal(clip["timestamps"], expected["timestamps"])
            for image, tensor in zip(clip["images"], expected["images"], strict=True):
                np.testing.assert_array_equal(image, tensor)
