"""A program: prints a digest of each row of the worlds' batches that this process has.

Started as `python tests/helpers/worlds_here.py COORDINATOR COUNT INDEX DEVICES`.
"""

import hashlib
import itertools
import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.parallel.processes import ProcessesConfig
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.held_out import host_rows, open_worlds
from lvsm_jax.worlds.stream import world_batches
from tests.helpers.plain_worlds import use_plain_worlds


def main(coordinator: str, count: int, index: int, devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    who = {"coordinator": coordinator, "num_processes": count, "process_id": index}
    processes.start(ProcessesConfig(**who) if count > 1 else ProcessesConfig())
    use_plain_worlds(pytest.MonkeyPatch())
    data = DataConfig("", image_height=8, num_views=8, num_targets=3, worlds_share=1.0)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        batches = world_batches(data, WorldsConfig(), batch_size=8, seed=0, mesh=mesh)
        batches = jax.tree.map(host_rows, list(itertools.islice(batches, 2)))
        evaluation = EvalConfig(worlds=6, world_views=8, batch_size=8)
        batches += list(open_worlds(data, WorldsConfig(), evaluation))
    for number, batch in enumerate(batches):
        for row in range(len(batch.scene)):
            leaves = b"".join(leaf[row].tobytes() for leaf in jax.tree.leaves(batch))
            print(number, int(batch.scene[row]), hashlib.sha256(leaves).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
