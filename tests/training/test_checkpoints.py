"""Checkpoints that are damaged, or were never finished: recognised, named, and passed over."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lvsm_jax
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.training import checkpoints as checkpoints_module
from lvsm_jax.training.checkpoints import CheckpointError, Checkpoints
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig, abstract_state, init_state

# TensorStore's half-read arrays of damaged checkpoints are complained about when they are freed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = TrainingConfig(
    lvsm_jax.EfficientLVSMConfig(num_layers=1, width=16, head_dim=8),
    OptimizerConfig(ema_decay=0.9),
    LossConfig(),
    num_steps=10,
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])


@pytest.fixture(scope="module")
def state(mesh):
    with jax.set_mesh(mesh):
        return init_state(CONFIG, mesh, seed=0)


@pytest.fixture(scope="module")
def saved(mesh, state, tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3, whose states are `at(state, step)`."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory, keep_last=3)
    with jax.set_mesh(mesh):
        for step in (1, 2, 3):
            checkpoints.save(step, at(state, step))
    checkpoints.close()
    return directory


def at(state, step):
    return jax.tree.map(lambda x: x + step, state)


def data_file(directory):
    return max(directory.rglob("d/*"), key=os.path.getsize)


def flip_a_bit(directory):
    file = data_file(directory)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_short(directory):
    file = data_file(directory)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def blank(directory):
    file = data_file(directory)
    file.write_bytes(bytes(file.stat().st_size))


def without_data(directory):
    data_file(directory).unlink()


def without_table(directory):
    (directory / "state" / "_METADATA").unlink()


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def restore(directory, mesh, keep_last=3):
    checkpoints = Checkpoints(directory, keep_last=keep_last)
    try:
        with jax.set_mesh(mesh):
            return checkpoints.restore_newest(abstract_state(CONFIG, mesh))
    finally:
        checkpoints.close()


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, blank, without_data, without_table, empty]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    saved, mesh, state, tmp_path, caplog, damage
):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    damage(directory / "3")
    step, restored = restore(directory, mesh)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 2))
    assert f"{directory}/3" in caplog.text
    assert (directory / "unreadable_3").is_dir()
    assert not (directory / "3").exists()


def test_a_step_that_was_damaged_is_saved_again(saved, mesh, state, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    for names in ({"unreadable_3"}, {"unreadable_3", "unreadable_3_again"}):
        flip_a_bit(directory / "3")
        checkpoints = Checkpoints(directory, keep_last=3)
        with jax.set_mesh(mesh):
            assert checkpoints.restore_newest(abstract_state(CONFIG, mesh))[0] == 2
            checkpoints.save(3, state)
        checkpoints.close()
        assert {path.name for path in directory.iterdir()} == {"1", "2", "3"} | names


def test_where_none_is_good_nothing_is_moved(saved, mesh, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    for step in "123":
        flip_a_bit(directory / step)
    with pytest.raises(CheckpointError, match=r"can be used, tried steps \[3, 2, 1\]"):
        restore(directory, mesh)
    assert {path.name for path in directory.iterdir()} == {"1", "2", "3"}
    assert restore(tmp_path / "none", mesh) is None


def test_what_changed_is_told(mesh, state, tmp_path, monkeypatch):
    right = checkpoints_module.checksums
    monkeypatch.setattr(checkpoints_module, "checksums", lambda leaves: right(leaves).at[0].add(1))
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
        checkpoints.save(3, state)
        checkpoints.close()
        monkeypatch.undo()
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=None)
        first = min(named_leaves(state))
        with pytest.raises(CheckpointError, match=rf"3 is corrupt: 1 of \d+ .* such as {first}"):
            checkpoints.restore(abstract_state(CONFIG, mesh), 3)
        with pytest.raises(CheckpointError, match="7 cannot be read"):
            checkpoints.restore(abstract_state(CONFIG, mesh), 7)
    checkpoints.close()


def test_any_bit_counts():
    leaves = {"a": jnp.zeros((4, 4)), "b": jnp.arange(6, dtype=jnp.bfloat16), "c": jnp.int32(-1)}
    sums = checkpoints_module.checksums(leaves)
    for name, leaf in leaves.items():
        bits = np.array(leaf).reshape(-1).view(np.uint8)
        for at_bit in range(8 * bits.size):
            changed = bits.copy()
            changed[at_bit // 8] ^= 1 << at_bit % 8
            other = leaves | {name: changed.view(leaf.dtype).reshape(leaf.shape)}
            differ = np.asarray(checkpoints_module.checksums(other)) != np.asarray(sums)
            assert differ.tolist() == [key == name for key in leaves]


def test_what_was_never_finished_is_named_and_removed(saved, mesh, tmp_path, caplog):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    unfinished = directory / "4.orbax-checkpoint-tmp"
    shutil.copytree(directory / "3", unfinished)
    assert restore(directory, mesh, keep_last=None)[0] == 3
    assert unfinished.exists()
    assert "never finished" not in caplog.text
    assert restore(directory, mesh)[0] == 3
    assert not unfinished.exists()
    assert f"{unfinished} was never finished, and is removed" in caplog.text


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_checksums_hold_on_other_meshes(saved, state, sizes):
    other = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
    step, restored = restore(saved, other)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 3))
