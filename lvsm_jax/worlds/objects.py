"""Objects: a few solids put together, on a plain background, on a ground, or under a sky."""

import dataclasses

import jax.numpy as jnp

from lvsm_jax.worlds.clutter import ANYTHING, no_panes
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.layout import Stage, draw_light, keep_first, make_solids, no_windows
from lvsm_jax.worlds.materials import pack
from lvsm_jax.worlds.recipes import draw_materials, draw_recipes
from lvsm_jax.worlds.scene import Scene
from lvsm_jax.worlds.solids import FAR

_MATERIALS = 12
_GROUNDS = ("meadow", "paving", "concrete", "planks", "floor tiles", "chequered tiles", "rock",
            "studio", "carpet", "terrazzo")  # fmt: skip
_PLAIN, _GROUND, _OUTSIDE = range(3)
_SETTINGS = (0.3, 0.35, 0.35)  # how often each
_FEWEST, _MOST = 1, 9


def lay_out(
    dice: Dice, config: WorldsConfig, complexity, settings: tuple[float, ...] = _SETTINGS
) -> tuple[Scene, Stage]:
    """A group of 1 to 9 solids within [-0.9, 0.9]³, and cameras around it.

    `settings` is how often it is before a plain background, on a ground, or outdoors.
    """
    uses = [ANYTHING] * (_MATERIALS - 1) + [_GROUNDS]
    materials = draw_materials(dice, draw_recipes(dice, uses), complexity, config)
    number = jnp.round(_FEWEST + dice.uniform() * (_MOST - _FEWEST) * complexity)
    setting = dice.choice(settings)
    form = dice.integers(3.0, (_MOST,))
    size = dice.uniform(0.12, 0.55, (_MOST, 1)) * dice.uniform(0.5, 1.2, (_MOST, 3))
    size = jnp.clip(size, 0.05, 0.6).at[0].multiply(1.4)
    reach = jnp.maximum(0.9 - size.max(-1, keepdims=True), 0.1)
    center = dice.uniform(-1, 1, (_MOST, 3)) * reach * 0.8
    center = center.at[0].multiply(0.2)
    turned = dice.chance(0.5, (_MOST,))[:, None, None]
    turn = jnp.where(turned, dice.rotations(_MOST), jnp.eye(3))
    ratio = jnp.where(dice.chance(0.5, (_MOST,)), dice.uniform(0.0, 1.0, (_MOST,)), 1.0)
    material = dice.integers(_MATERIALS - 1.0, (_MOST,))
    group = make_solids(center, size, material, turn, ratio, jnp.arange(_MOST))
    there = jnp.arange(_MOST) < number
    forms = [
        keep_first(group, there & (form == which), capacity)
        for which, capacity in enumerate((config.boxes, config.ellipsoids, config.cylinders))
    ]
    # How far down each reaches: the ground touches the lowest.
    down = center[:, 1] + jnp.sqrt((turn[:, :, 1] ** 2 * size**2).sum(-1))
    floor = jnp.max(jnp.where(there, down, -1.0))
    grounded = setting != _PLAIN
    high = jnp.stack([jnp.float32(FAR), jnp.where(grounded, floor, FAR), jnp.float32(FAR)])
    shell = jnp.stack([jnp.full(3, -FAR), high])
    is_open = jnp.ones(6, bool).at[3].set(~grounded)
    box = jnp.stack([jnp.full(3, -3.0), jnp.full(3, 3.0)])
    light = draw_light(dice, config, complexity, box, indoors=False)
    # A studio's background is one soft gradient.
    tone, shade = dice.uniform(0.15, 1.0, (3,)), dice.uniform(0.3, 1.0)
    tone = tone * 0.3 + tone.mean() * 0.7
    outside = setting == _OUTSIDE
    light = dataclasses.replace(
        light,
        zenith=jnp.where(outside, light.zenith, tone),
        horizon=jnp.where(outside, light.horizon, tone * shade),
        ground=jnp.where(outside, light.ground, tone * shade),
        above=jnp.where(outside, light.above, jnp.array([0.6, 0.6, 0.62])),
        below=jnp.where(outside, light.below, jnp.array([0.3, 0.29, 0.27])),
        rough=jnp.where(outside, 1.0, 0.0),
        reach=jnp.float32(0.35),
    )
    scene = Scene(
        *forms,
        shell=shell,
        face_material=jnp.full(6, _MATERIALS - 1),
        face_open=is_open,
        windows=no_windows(),
        skirting=jnp.float32(0.0),
        panes=no_panes(),
        materials=pack(materials),
        light=light,
    )
    lowest = jnp.where(grounded, floor - 0.1, 2.0)
    stage = Stage(
        low=jnp.full(3, -4.0),
        high=jnp.stack([jnp.float32(4.0), lowest, jnp.float32(4.0)]),
        focus=jnp.zeros(3).at[1].set(jnp.where(grounded, 0.5 * floor, 0.0)),
        radius=jnp.stack([1.6, 2.8]),
        height=jnp.stack([-1.6, jnp.minimum(lowest, 0.4)]),
        stride=jnp.float32(1.2),
        arc=jnp.float32(2.8),
    )
    return scene, stage
