"""Worlds from keys: scenes are laid out, filmed and developed, each from its own key alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lvsm_jax.models.cameras import Cameras
from lvsm_jax.worlds import clutter, objects, rooms
from lvsm_jax.worlds.config import KINDS, WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.layout import Stage
from lvsm_jax.worlds.motion import draw_motion
from lvsm_jax.worlds.paths import draw_cameras
from lvsm_jax.worlds.render import render
from lvsm_jax.worlds.scene import Scene

_METERED = 4096  # pixels by which a scene is exposed, at most
_LUMINANCE = (0.2126, 0.7152, 0.0722)
_MOTION = 2  # folded into a scene's key: layout and cameras have its two halves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Worlds:
    """Pictures of scenes with their cameras and depth.

    Attributes:
        images: uint8 `[s, n, h, w, 3]`.
        cameras: `[s, n]`, in the scene's own frame and unit, ordered along the path.
        depth: float32 `[s, n, h, w]` along the camera's z axis at pixel centres, infinite where
            nothing is hit. Panes of glass are looked through; a mirror is a surface.
        ways: float32 `[s, n, h, w, 3]`, where something moves: how far the pixel's point goes while
            time goes from 0 to 1. Cameras then have the times of their views; else both are None.
    """

    images: Any
    cameras: Cameras
    depth: Any
    ways: Any = None


def is_moving(worlds: Worlds) -> Bool[Array, "*n h w"] | None:
    """Which pixels show what moves; None where that is not known, or nothing does."""
    return None if worlds.ways is None else (worlds.ways != 0).any(-1)


def make_worlds(
    keys: Key[Array, " s"],
    config: WorldsConfig,
    *,
    views: int,
    height: int,
    width: int,
    complexity: Float[Array, ""] | float = 1.0,
    zooms: tuple[tuple[int, float], ...] = (),
) -> Worlds:
    """Makes one scene of each key.

    `zooms` are a position on the path and a factor of its focal lengths each: pictures that follow
    those of the path, and are exposed as they are.

    A scene depends on its key, the arguments and nothing else: it is the same bit by bit in any
    batch, and on any device of one kind. `complexity`, from 0 to 1, may be traced: more of
    everything, with more patterns and longer paths.
    """

    def make(key, growth):
        return _make_scene(key, config, views, height, width, growth, zooms)

    images, c2w, fxfycxcy, depth, times, ways = make_each(make, keys, config, complexity)
    return Worlds(images, Cameras(c2w, fxfycxcy, times), depth, ways)


def make_each(make: Callable[..., Any], keys: Key[Array, " s"], config, complexity) -> Any:
    """`make(key, complexity)` of each key, rounded alike for any number of them."""
    # 1, which the compiler does not know: it would compile known numbers into the scenes, and a
    # loop of known length apart from others, and round them differently.
    one = jnp.minimum(1, jax.random.key_data(keys).ravel()[0] | 1)
    growth = jnp.asarray(complexity, jnp.float32) * one.astype(jnp.float32)
    return _map_scenes(lambda key: make(key, growth), keys, config.scenes_at_once, one)


def _map_scenes(make, keys, at_once: int, one):
    """`make` of each key, by one program for `at_once` of them, whatever their number.

    Arrays have room for more groups than there are: one of a single group would need no slices,
    and its program would be another.
    """
    number = keys.shape[0]
    groups = -(-number // at_once)
    room = (groups + 1) * at_once
    keys = keys[jnp.minimum(jnp.arange(room), number - 1)]
    function = (
        jax.vmap(make) if at_once > 1 else lambda key: jax.tree.map(lambda x: x[None], make(key[0]))
    )
    like = jax.eval_shape(function, keys[:at_once])
    zero = one - one
    made = jax.tree.map(
        lambda x: jnp.broadcast_to(zero.astype(x.dtype), (room, *x.shape[1:])), like
    )

    def add(group, made):
        start = group * at_once
        new = function(jax.lax.dynamic_slice_in_dim(keys, start, at_once))
        return jax.tree.map(
            lambda all_, some: jax.lax.dynamic_update_slice_in_dim(all_, some, start, 0), made, new
        )

    made = jax.lax.fori_loop(0, groups * one.astype(jnp.int32), add, made)
    return jax.tree.map(lambda x: x[:number], made)


def _make_scene(key, config, views, height, width, complexity, zooms):
    layout_key, camera_key = jax.random.split(key)
    scene, stage = lay_out(layout_key, config, complexity)
    motion = None
    if config.moving_share:
        # A key of its own: the scene and the candidates for its path are those without motion.
        dice = Dice(jax.random.fold_in(key, _MOTION), 1024)
        motion = draw_motion(dice, scene, stage, config, views)
    c2w, fxfycxcy = draw_cameras(
        Dice(camera_key), scene, stage, config, complexity, views, height, width, motion
    )
    for position, factor in zooms:
        zoomed = fxfycxcy[position] * jnp.array([factor, factor, 1.0, 1.0])
        c2w, fxfycxcy = (
            jnp.concatenate([all_, one[None]])
            for all_, one in ((c2w, c2w[position]), (fxfycxcy, zoomed))
        )
    if motion is not None:
        zoomed = motion.times[np.array([position for position, _ in zooms], int)]
        motion = dataclasses.replace(motion, times=jnp.concatenate([motion.times, zoomed]))
    radiance, depth, ways = render(scene, c2w, fxfycxcy, height, width, config, motion)
    times = None if motion is None else motion.times
    return develop(radiance, radiance[:views]), c2w, fxfycxcy, depth, times, ways


def draw_kind(key: Key[Array, ""], config: WorldsConfig) -> Int[Array, ""]:
    """Position in `KINDS` of the kind of scene that a key draws."""
    total = sum(config.kind_weights)
    shares = jnp.array([weight / total for weight in config.kind_weights])
    return jax.random.choice(key, len(KINDS), p=shares)


def lay_out(key: Key[Array, ""], config: WorldsConfig, complexity) -> tuple[Scene, Stage]:
    """A scene of a kind that the key draws, and the stage for its cameras."""
    kind_key, key = jax.random.split(key)
    kinds = (rooms.lay_out, clutter.lay_out, objects.lay_out)  # in the order of KINDS
    there = [weight > 0 for weight in config.kind_weights]
    branches = [
        lambda key, of=of: of(Dice(key), config, complexity)
        for of, is_there in zip(kinds, there, strict=True)
        if is_there  # no others are compiled
    ]
    position = jnp.cumsum(jnp.array(there)) - 1
    return jax.lax.switch(position[draw_kind(kind_key, config)], branches, key)


def develop(
    radiance: Float[Array, "n h w 3"],
    path: Float[Array, "k h w 3"],
    there: Bool[Array, "k h w"] | None = None,
) -> UInt8[Array, "n h w 3"]:
    """Pictures of 8 bits, all exposed alike: by the bright and the middling parts of the path.

    Where given, by its pixels of what is `there` alone.
    """
    luminance = (path * jnp.array(_LUMINANCE)).sum(-1).reshape(-1)
    step = max(1, luminance.size // _METERED)
    levels = jnp.array([50.0, 92.0])
    if there is None:
        middle, bright = jnp.percentile(luminance[::step], levels)
    else:
        step |= 1  # an even one could be a whole number of rows: one column, without the object
        metered, of_it = luminance[::step], there.reshape(-1)[::step]
        found = jnp.nanpercentile(jnp.where(of_it, metered, jnp.nan), levels)
        middle, bright = jnp.where(of_it.any(), found, 1.0)
    exposure = jnp.minimum(0.19 / jnp.maximum(middle, 1e-3), 0.75 / jnp.maximum(bright, 1e-3))
    x = radiance * exposure * 1.1
    # A film's response: Narkowicz's fit of the ACES curve.
    film = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    return jnp.round(255 * jnp.clip(film, 0, 1) ** (1 / 2.2)).astype(jnp.uint8)
