"""What the three kinds of scene share while they are laid out: slots, light, and the stage."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.scene import WINDOWS, Light
from lvsm_jax.worlds.solids import Solids

_ARRAYS = ("turn", "center", "half", "ratio", "material", "body")  # of Solids


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stage:
    """Where cameras may stand, and what they look at.

    Attributes:
        low: `[3]` least coordinates of the space for cameras.
        high: `[3]` greatest.
        focus: `[3]` a point worth looking at.
        radius: `[2]` least and greatest distance of orbits from it.
        height: `[2]` least and greatest y of cameras that stand on their feet.
        stride: `[]` usual length of a walk, in metres.
        arc: `[]` usual angle of an orbit, in radians.
    """

    low: Any
    high: Any
    focus: Any
    radius: Any
    height: Any
    stride: Any
    arc: Any


def keep_first(solids: Solids, there: Bool[Array, " p"], capacity: int) -> Solids:
    """The solids that are there, in their order, in `capacity` slots; later ones find no place."""
    order = jnp.argsort(~there, stable=True)
    missing = max(0, capacity - order.shape[0])
    order = jnp.pad(order, (0, missing))[:capacity]
    count = jnp.minimum(there.sum(), capacity).astype(jnp.int32)
    return Solids(**{name: getattr(solids, name)[order] for name in _ARRAYS}, count=count)


def make_solids(center, half, material, turn=None, ratio=None, body=None) -> Solids:
    """Solids of `[p, 3]` middles and half sizes.

    By default upright cylinders and level boxes that stand still.
    """
    number = center.shape[0]
    turn = jnp.broadcast_to(jnp.eye(3), (number, 3, 3)) if turn is None else turn
    ratio = jnp.ones(number) if ratio is None else ratio
    body = jnp.full(number, -1) if body is None else body
    return Solids(turn, center, half, ratio, material, jnp.int32(number), body)


def join(*groups: tuple[Solids, Array]) -> tuple[Solids, Bool[Array, " p"]]:
    """Groups of solids and whether each is there, one after the other."""
    parts = {name: jnp.concatenate([getattr(s, name) for s, _ in groups]) for name in _ARRAYS}
    there = jnp.concatenate([jnp.broadcast_to(t, s.half.shape[:1]) for s, t in groups])
    return Solids(**parts, count=there.sum()), there


def no_windows() -> Float[Array, "windows 2 3"]:
    """Windows of no size."""
    return jnp.zeros((WINDOWS, 2, 3))


def draw_light(
    dice: Dice, config: WorldsConfig, complexity, shell, *, indoors: bool, has_window=True
) -> Light:
    """Sun, sky and bulbs in a shell."""
    yaw, height = dice.uniform(0, 2 * jnp.pi), dice.uniform(0.25, 1.2)
    level = jnp.cos(height)
    sun = jnp.stack([level * jnp.cos(yaw), -jnp.sin(height), level * jnp.sin(yaw)])
    shines = dice.chance(config.sun_share)
    warm = dice.uniform()
    low_sun = jnp.clip(1.2 - height, 0, 1)
    sun_color = jnp.stack([1.0 + 0 * warm, 0.93 - 0.2 * low_sun, 0.82 - 0.4 * low_sun])
    sun_color = sun_color * jnp.where(shines, dice.uniform(2.0, 4.5), 0.0)
    blue = dice.uniform(0.3, 1.0) * jnp.where(shines, 1.0, 0.3)
    zenith = jnp.stack([0.75 - 0.5 * blue, 0.85 - 0.3 * blue, 1.0 + 0 * blue])
    zenith = zenith * dice.uniform(0.7, 1.1)
    horizon = jnp.stack([0.95 + 0.1 * low_sun, 0.95 + 0 * blue, 1.0 - 0.15 * low_sun])
    horizon = horizon * dice.uniform(0.8, 1.2)
    ground = dice.uniform(jnp.array([0.08, 0.1, 0.05]), jnp.array([0.25, 0.24, 0.16]), (3,))
    low, high = shell
    half, middle = (high - low) / 2, (low + high) / 2
    share = dice.uniform(-0.6, 0.6, (config.bulbs, 3))
    share = share.at[:, 1].set(dice.uniform(-0.75, -0.2, (config.bulbs,)))
    tint = dice.uniform(0.0, 1.0, (config.bulbs, 1))
    tone = jnp.array([1.0, 0.95, 0.9]) + tint * jnp.array([0.0, -0.13, -0.32])
    if indoors:
        bulbs = middle + half * share
        lit = dice.chance(0.35 + 0.3 * complexity, (config.bulbs, 1))
        # One lamp at least burns where no window lets the day in.
        lit = lit.at[0].set(lit[0] | ~jnp.asarray(has_window))
        power = dice.uniform(0.15, 0.7, (config.bulbs, 1)) * (half * half).mean()
        mood = jnp.where(has_window, dice.uniform(0.25, 0.5), dice.uniform(0.2, 0.4))
        above = mood * dice.uniform(0.8, 1.1, (3,)) * jnp.array([1.0, 0.97, 0.92])
        below = above * dice.uniform(0.5, 0.8) * jnp.array([1.0, 0.92, 0.82])
        sun_color = sun_color * 1.3
        zenith, horizon = zenith * 1.3, horizon * 1.3
    else:
        bulbs = (
            dice.uniform(-2.5, 2.5, (config.bulbs, 3))
            .at[:, 1]
            .set(dice.uniform(-3.0, -1.0, (config.bulbs,)))
        )
        lit = dice.chance(0.3 * complexity, (config.bulbs, 1))
        power = dice.uniform(0.5, 3.0, (config.bulbs, 1))
        above, below = 0.6 * (zenith + horizon) / 2, 0.9 * ground
        mood = dice.uniform()
    return Light(
        sun=sun,
        sun_color=sun_color,
        bulbs=bulbs,
        bulb_colors=jnp.where(lit, tone * power, 0.0),
        above=above,
        below=below,
        zenith=zenith,
        horizon=horizon,
        ground=ground,
        rough=jnp.float32(1.0),
        reach=0.18 * jnp.minimum(half.min(), 3.0),
    )
