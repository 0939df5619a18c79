"""Variables of MAT files, as SciPy writes and reads them."""

import numpy as np
import pytest
import scipy.io

from lvsm_jax.common.errors import UserError
from lvsm_jax.frozen.matfile import read_variable


def numbers(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 50, shape).astype(kind)


INNER, CELL = np.empty((1, 2), object), np.empty((2, 3), object)
INNER[:] = [[numbers("f8", (2, 2)), 3]]
CELL[:] = [[numbers("f4", (2, 3, 4, 5)), "text", np.zeros((0, 0))], [1.5, INNER, 7]]
VALUES = {
    **{kind: numbers(kind, (3, 4)) for kind in ("f4", "f8", "i1", "u1", "i2", "u2", "i4", "i8")},
    "four": numbers("f4", (2, 3, 4, 5)),
    "one": np.array([[3]], np.int8),  # in the head of its element
    "none": np.zeros((0, 0)),
    "cell": CELL,
    "layers": np.array([[("a", CELL)]], [("name", object), ("weights", object)]),
}


def plain(value):
    """What SciPy reads, as `read_variable` gives it."""
    if value.dtype.names:
        return [{n: plain(row[n]) for n in value.dtype.names} for row in value.ravel(order="F")]
    if value.dtype == object:
        return [plain(np.asarray(inner)) for inner in value.ravel(order="F")]
    return value if value.dtype.kind in "iuf" else None


def assert_same(ours, theirs):
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert_same(ours[name], value)
    elif theirs is None:
        assert ours is None
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("compressed", [False, True])
def test_it_reads_what_scipy_reads(tmp_path, compressed):
    path = tmp_path / "all.mat"
    scipy.io.savemat(path, VALUES, do_compression=compressed)
    expected = scipy.io.loadmat(path)
    for name in VALUES:
        with path.open("rb") as file:
            assert_same(read_variable(file, name), plain(expected[name]))
    with path.open("rb") as file, pytest.raises(UserError, match="no variable 'other'"):
        read_variable(file, "other")


def test_other_versions_are_no_mat_files(tmp_path):
    scipy.io.savemat(tmp_path / "4.mat", {"a": np.ones((2, 2))}, format="4")
    (tmp_path / "text.mat").write_text("text")
    for name in ("4.mat", "text.mat"):
        with (tmp_path / name).open("rb") as file, pytest.raises(UserError, match="not a MAT"):
            read_variable(file, "a")
