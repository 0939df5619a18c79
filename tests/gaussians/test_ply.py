"""Files of splat viewers: those of other programs are read, ours come back as they were."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lvsm_jax.gaussians.gaussians import Gaussians, rotations
from lvsm_jax.gaussians.ply import move, read_ply, write_ply


def random_gaussians(n=50):
    rng = np.random.default_rng(1)
    turns = rng.normal(size=(n, 4))
    return Gaussians(
        means=rng.normal(size=(n, 3)).astype(np.float32),
        quaternions=(turns / np.linalg.norm(turns, axis=-1, keepdims=True)).astype(np.float32),
        scales=np.exp(rng.normal(-3, 1, (n, 3))).astype(np.float32),
        opacities=rng.uniform(0.01, 0.99, n).astype(np.float32),
        colors=rng.uniform(0, 1.3, (n, 3)).astype(np.float32),
    )


def fields(gaussians):
    return {x.name: getattr(gaussians, x.name) for x in dataclasses.fields(Gaussians)}


def test_a_file_of_another_program(goldens, tmp_path):
    """Written with plyfile, and decoded by gsplat's rules and by gsply."""
    golden = np.load(goldens / "ply" / "decoded.npz")
    found = read_ply(goldens / "ply" / "sh0.ply")
    for name, theirs in (
        ("means", "means"),
        ("opacities", "opacities"),
        ("scales", "scales"),
        ("quaternions", "quats_wxyz"),
        ("colors", "colors_degree0"),
    ):
        np.testing.assert_allclose(getattr(found, name), golden[theirs], atol=1e-6, rtol=1e-6)
    # Written again, its header is the same to the byte.
    write_ply(tmp_path / "again.ply", found)
    ours, theirs = (
        path.read_bytes().partition(b"end_header\n")[0].split(b"\n")
        for path in (tmp_path / "again.ply", goldens / "ply" / "sh0.ply")
    )
    assert [x for x in theirs if not x.startswith(b"comment")] == ours


def test_round_trip(tmp_path):
    gaussians = random_gaussians()
    assert write_ply(tmp_path / "scene.ply", gaussians) == 50
    for name, ours in fields(read_ply(tmp_path / "scene.ply")).items():
        np.testing.assert_allclose(ours, getattr(gaussians, name), rtol=2e-6, atol=1e-7)
    # An opacity of 1 has no finite logit, and one of 0 none either.
    extreme = dataclasses.replace(gaussians, opacities=np.float32([0, 1] * 25))
    write_ply(tmp_path / "extreme.ply", extreme)
    again = read_ply(tmp_path / "extreme.ply").opacities
    np.testing.assert_allclose(again, extreme.opacities, atol=2e-6)


def test_pruned_by_opacity(tmp_path):
    gaussians = random_gaussians()
    kept = gaussians.opacities >= 0.4
    assert write_ply(tmp_path / "some.ply", gaussians, min_opacity=0.4) == kept.sum() < 50
    found = read_ply(tmp_path / "some.ply")
    np.testing.assert_array_equal(found.means, gaussians.means[kept])
    with pytest.raises(ValueError, match=r"none of 50 Gaussians is as opaque as 0.999"):
        write_ply(tmp_path / "none.ply", gaussians, min_opacity=0.999)
    assert not (tmp_path / "none.ply").exists()


def test_moved_into_another_world():
    gaussians = random_gaussians()
    turn = np.array(rotations(jnp.array([[0.3, -0.5, 0.1, 0.8]]))[0], np.float64)
    shift, scale = np.array([3.0, -2.0, 5.0]), 2.5
    moved = move(gaussians, turn, shift, scale)
    np.testing.assert_allclose(
        moved.means, scale * gaussians.means @ turn.T + shift, rtol=1e-5, atol=1e-5
    )

    def spread(gaussians):
        axes = np.asarray(rotations(jnp.asarray(gaussians.quaternions))) * gaussians.scales[:, None]
        return axes @ axes.swapaxes(-1, -2)

    expected = scale**2 * turn @ spread(gaussians) @ turn.T
    np.testing.assert_allclose(spread(moved), expected, rtol=1e-4, atol=1e-6)


def test_other_files_are_refused(goldens, tmp_path):
    write_ply(tmp_path / "scene.ply", random_gaussians())
    whole = (tmp_path / "scene.ply").read_bytes()
    for content, message in (
        (b"PNG", "is no PLY file"),
        (whole[:-1], r"has 3399 bytes of data, expected 50 × 68"),
        (whole.replace(b"little", b"big"), "expected ASCII or little endian"),
        (whole.replace(b"float opacity", b"float opaque"), "its vertices lack opacity: these are"),
        (whole.replace(b"float nx", b"list uchar int nx"), "which is not understood"),
        (whole.replace(b"float nx", b"float x"), "names a property twice"),
        (whole.replace(b"vertex 50", b"vertex " + b"9" * 5000), "which is not understood"),
        (whole[:-68] + b"\xff" * 68, "of Gaussians are not finite"),
        ((goldens / "ply" / "sh3_no_normals_gsplat.ply").read_bytes(), "f_rest_0 …"),
        ((goldens / "ply" / "sh1_ascii.ply").read_bytes(), "f_rest_0 …"),
    ):
        (tmp_path / "bad.ply").write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_ply(tmp_path / "bad.ply")
        assert str(error.value).startswith(f"{tmp_path}/bad.ply: ")
        assert "\n" not in str(error.value)
    broken = dataclasses.replace(random_gaussians(), scales=np.zeros((50, 3)))
    with pytest.raises(ValueError, match="scales of Gaussians are not above 0"):
        write_ply(tmp_path / "new.ply", broken)
    assert not (tmp_path / "new.ply").exists()
