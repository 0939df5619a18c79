"""What the GPU compiler makes of the loops over a world's solids: rays are read once, not in turns.

Needs the compiler for GPUs: pip install -c constraints.txt -e '.[cuda]'.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lvsm_jax.common.errors import UserError
from lvsm_jax.cost import hlo
from lvsm_jax.cost.topology import topology_mesh
from lvsm_jax.parallel.mesh import MeshConfig
from lvsm_jax.worlds import solids

SCENES, RAYS, NUMBERS = 8, 16_384, (80, 24, 24)
FLOATS = {"cast": 6 + 2, "is_blocked": 6 + 1 + 1, "distance_to_solids": 3 + 1}  # in and out


def compile_for_h100(name: str, at_once: int) -> str:
    try:
        mesh = topology_mesh("h100:1x1", MeshConfig())
    except UserError as error:
        pytest.skip(str(error))

    def shape(*sizes, dtype=jnp.float32):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct((SCENES, *sizes), dtype, sharding=sharding)

    forms = [shape(number, 16) for number in NUMBERS]
    geometry = solids.Geometry(*forms, shape(3, dtype=jnp.int32), shape(2, 3), at_once)
    rays = [shape(3, RAYS)] * (1 if name == "distance_to_solids" else 2)
    limit = [shape(RAYS)] if name == "is_blocked" else []
    function = jax.jit(jax.vmap(getattr(solids, name)))
    return function.lower(geometry, *rays, *limit).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOATS)
def test_rays_pass_through_memory_a_few_times_for_all_solids(name):
    once = 4 * FLOATS[name] * SCENES * RAYS
    text = compile_for_h100(name, 128)
    assert hlo.hbm_bytes(text) < 4 * once  # a kernel for each form
    if name == "cast":  # counting each loop as one turn of those of the old way
        assert hlo.hbm_bytes(compile_for_h100(name, 4)) > 4 * once
