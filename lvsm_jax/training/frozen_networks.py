"""Networks that losses look through and no step changes: VGG, LPIPS, REPA's teacher.

They are an argument of the training step: neither constants of its program nor part of the state,
so checkpoints and exports do not hold them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.dino import TEACHERS, Dino
from lvsm_jax.frozen.dino_weights import find_teacher, load_teacher
from lvsm_jax.frozen.lpips import LPIPS, find_weights, load_lpips
from lvsm_jax.frozen.perceptual import PLAN, Perceptual, find_vgg19, load_perceptual
from lvsm_jax.parallel.mesh import replicate
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.repa import RepaConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The frozen networks of a training step, None where no loss asks for one."""

    # A `Perceptual`, an `LPIPS` and REPA's `Dino`, or shapes or shardings of them.
    perceptual: Any = None
    lpips: Any = None
    teacher: Any = None


NO_NETWORKS = Frozen()


def find_frozen(loss: LossConfig, repa: RepaConfig) -> dict[str, Any]:
    """The file of each network that these losses need, by the names of `Frozen`'s fields.

    MissingWeightsError names the first that is missing, with where to get it and put it.
    """
    files = {}
    if loss.perceptual:
        files["perceptual"] = find_vgg19(loss.vgg_weights)
    if loss.lpips:
        names = {"field": "loss.lpips_weights", "without": "--config.loss.lpips=0"}
        files["lpips"] = find_weights(loss.lpips_weights, **names)
    if repa.weight:
        files["teacher"] = find_teacher(repa.teacher_weights, repa.teacher)
    return files


def load_frozen(loss: LossConfig, repa: RepaConfig, *, dtype: str, mesh: Mesh) -> Frozen:
    """Reads the networks of `find_frozen` onto every device, in `dtype`, the model's.

    UserError for a file with other contents; names it and what is wrong.
    """
    networks = find_frozen(loss, repa)
    for name, load in (("perceptual", load_perceptual), ("lpips", load_lpips)):
        if name in networks:
            network = load(networks[name])
            networks[name] = jax.tree.map(lambda x: jnp.asarray(x, dtype), network)
    if "teacher" in networks:  # it keeps its norms in float32, and has no blocks that nobody reads
        options = {"num_blocks": _depth(repa), "dtype": dtype}
        networks["teacher"] = load_teacher(networks["teacher"], repa.teacher, **options)
    # They have neither gradient nor optimizer state, and in bfloat16 the largest of them takes a
    # fifth of what the trained weights take; sharded, they would be gathered in every step.
    return replicate(mesh, Frozen(**networks))


def abstract_frozen(loss: LossConfig, repa: RepaConfig, *, dtype: str, mesh: Mesh) -> Frozen:
    """Shapes, types and shardings of what `load_frozen` returns; needs no files."""

    def networks() -> Frozen:
        linear = tuple(jnp.zeros(block[-1], dtype) for block in vgg.VGG16)
        teacher = dataclasses.replace(TEACHERS[repa.teacher], num_layers=_depth(repa), dtype=dtype)
        return Frozen(
            perceptual=Perceptual(vgg.zeros(PLAN, dtype)) if loss.perceptual else None,
            lpips=LPIPS(vgg.zeros(vgg.VGG16, dtype), linear) if loss.lpips else None,
            teacher=Dino(teacher, rngs=nnx.Rngs(0)) if repa.weight else None,
        )

    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(networks),
    )


def _depth(repa: RepaConfig) -> int:
    """Blocks of the teacher that are looked at."""
    return max((block for _, block in repa.pairs), default=1)
