"""What earlier releases wrote is read by this one, to the same numbers.

`tests/fixtures/release_VERSION.tar.gz` holds a tiny run of that release: its export, a checkpoint,
and what they gave then (`expected.npz`: inputs, renders, each array of the state).
"""

import json
import pathlib
import tarfile

import jax
import ml_collections
import numpy as np
import pytest

import lvsm_jax
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.train_state import TrainingConfig, abstract_state

FIXTURES = sorted((pathlib.Path(__file__).resolve().parents[1] / "fixtures").glob("release_*.gz"))


@pytest.fixture(params=FIXTURES, ids=lambda file: file.name.removesuffix(".tar.gz"))
def release(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    return folder


def test_export_renders_as_it_did(release):
    expected = np.load(release / "expected.npz")
    inputs, targets = (
        lvsm_jax.Cameras(expected[f"{name}_c2w"], expected[f"{name}_fxfycxcy"])
        for name in ("input", "target")
    )
    renders = lvsm_jax.load(release / "export")(expected["images"], inputs, targets)
    np.testing.assert_allclose(renders, expected["renders"], atol=1e-6)


def test_checkpoint_restores_the_whole_state(release):
    config = ml_collections.ConfigDict(json.loads((release / "run" / "config.json").read_text()))
    mesh = make_mesh()
    checkpoints = Checkpoints(release / "run" / "checkpoints", keep_last=None)
    with jax.set_mesh(mesh):
        state = checkpoints.restore(abstract_state(TrainingConfig.of(config), mesh), 1)
    checkpoints.close()
    expected = np.load(release / "expected.npz")
    leaves = named_leaves(state)
    assert {f"state/{name}" for name in leaves} == {
        name for name in expected if name.startswith("state/")
    }
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected[f"state/{name}"], err_msg=name)
