"""Bodies that slide while time goes from 0 to 1: level, straight on, each at a speed of its own.

They are where the scene was laid out at time 1/2. A body is a loose solid, or a piece of furniture
with what lies on it (`Solids.body`). Everything in a scene that does not move is as without motion.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.layout import Stage
from lvsm_jax.worlds.scene import Scene, by_index
from lvsm_jax.worlds.solids import FORMS, Geometry, Solids

_SHORTEST = 0.3  # way of a body, over the least distance of orbits, which is the longest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Motion:
    """Ways of the solids, and when the views are taken.

    Attributes:
        boxes: `[p, 3]` how far each goes while time goes from 0 to 1; 0 for what stands still.
        ellipsoids: the same.
        cylinders: the same.
        times: `[n]` of the views, from 0 to 1.
    """

    boxes: Any
    ellipsoids: Any
    cylinders: Any
    times: Any

    def scene_at(self, scene: Scene, time: Float[Array, ""]) -> Scene:
        """The scene at a time."""

        def moved(form: str) -> Solids:
            solids = getattr(scene, form)
            center = solids.center + (time - 0.5) * getattr(self, form)
            return dataclasses.replace(solids, center=center)

        return dataclasses.replace(scene, **{form: moved(form) for form in FORMS})

    def ways(self, geometry: Geometry) -> Float[Array, "surfaces 3"]:
        """Ways by the indices that `solids.cast` gives; the shell stands still."""
        return by_index(geometry, [getattr(self, form) for form in FORMS], jnp.zeros((6, 3)))


def draw_motion(dice: Dice, scene: Scene, stage: Stage, config: WorldsConfig, views: int) -> Motion:
    """Ways of so many bodies as `moving_share` says, inside of the shell, and times at random."""
    bodies = config.boxes + config.ellipsoids + config.cylinders
    forms = [getattr(scene, form) for form in FORMS]
    moves = dice.chance(config.moving_share, (bodies,))
    bearing = dice.uniform(0, 2 * jnp.pi, (bodies,))
    length = dice.uniform(_SHORTEST, 1.0, (bodies,)) * stage.radius[0] * moves
    ways = [length * jnp.cos(bearing), jnp.zeros(bodies), length * jnp.sin(bearing)]
    # A body has the room that the least of its solids has.
    which = jnp.concatenate([jnp.where(form.body < 0, bodies, form.body) for form in forms])
    room = jnp.concatenate([_room(form, scene.shell) for form in forms])
    most = jnp.maximum(jax.ops.segment_min(room, which, bodies + 1), 0)
    ways = jnp.clip(jnp.stack(ways, axis=-1), -2 * most[:-1], 2 * most[:-1])
    ways = jnp.concatenate([ways, jnp.zeros((1, 3))])  # of what stands still
    return Motion(*(ways[form.body] for form in forms), dice.uniform(shape=(views,)))


def _room(solids: Solids, shell: Float[Array, "2 3"]) -> Float[Array, "p 3"]:
    """How far solids can go along each axis, to either side, without leaving the shell."""
    extent = (jnp.abs(solids.turn) * solids.half[:, :, None]).sum(1)
    room = jnp.minimum(solids.center - extent - shell[0], shell[1] - solids.center - extent)
    there = jnp.arange(len(room)) < solids.count
    return jnp.where(there[:, None], room, jnp.inf)
