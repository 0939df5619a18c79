"""Cameras of a scene: walks, orbits, spread and outward-looking ones, the best of several drawn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.worlds import solids
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.layout import Stage
from lvsm_jax.worlds.motion import Motion
from lvsm_jax.worlds.scene import Scene
from lvsm_jax.worlds.surface import in_window

_LOOKS = 3  # rays across and down a view, by which candidates are judged


def draw_cameras(
    dice: Dice,
    scene: Scene,
    stage: Stage,
    config: WorldsConfig,
    complexity,
    views: int,
    height: int,
    width: int,
    motion: Motion | None = None,
) -> tuple[Float[Array, "n 4 4"], Float[Array, "n 4"]]:
    """Camera-to-world matrices and intrinsics in pixels, in the order of the path."""
    fxfycxcy = _draw_lenses(dice, config, views, height, width)
    poses = draw_paths(dice, stage, config, complexity, views)
    scores = judge(scene, stage, poses, fxfycxcy, config, height, width, motion)
    best = poses[jnp.argmax(scores)]
    # Where no candidate stays on the stage, cameras stop at its edge: none is outside of the room.
    position = jnp.clip(best[:, :3, 3], stage.low, stage.high)
    return best.at[:, :3, 3].set(position), fxfycxcy


def _draw_lenses(dice, config, views, height, width):
    low, high = config.fields_of_view
    # The mean of two, as angles near the middle are the most common.
    angle = (dice.uniform(low, high) + dice.uniform(low, high)) / 2
    varied = dice.chance(config.varied_share)
    each = jnp.clip(angle * dice.uniform(0.7, 1.4, (views,)), low, high)
    angle = jnp.where(varied, each, angle)
    focal = width / 2 / jnp.tan(jnp.radians(angle) / 2)
    center = jnp.broadcast_to(jnp.array([width / 2, height / 2]), (views, 2))
    return jnp.concatenate([focal[:, None], focal[:, None], center], axis=1)


def draw_paths(
    dice: Dice, stage: Stage, config: WorldsConfig, complexity, views: int
) -> Float[Array, "k n 4 4"]:
    """Candidates for a scene's path, all of one kind."""
    tries = config.path_tries

    def draw(low=0.0, high=1.0):
        return dice.uniform(low, high, (tries, 1))

    kind = dice.choice(config.path_weights)
    low, high = config.baseline
    longest = low + (high - low) * complexity
    share = dice.uniform(low, longest)
    time = jnp.linspace(0.0, 1.0, views) if views > 1 else jnp.full(1, 0.5)
    ease = draw(0, 0.4)
    time = time - ease * jnp.sin(2 * jnp.pi * time) / (2 * jnp.pi)  # [k, n]

    # A walk goes ahead, back or sideways, a little bent, and turns its head.
    yaw0, turned = draw(0, 2 * jnp.pi), draw(-0.7, 0.7) * share
    sideways = jnp.where(draw() < 0.6, jnp.where(draw() < 0.5, 1.0, -1.0) * draw(1.0, 2.0), 0)
    bearing = yaw0 + turned / 2 + draw(-0.4, 0.4) + sideways
    length, bend = stage.stride * share * draw(0.7, 1.3), draw(-0.2, 0.2)
    start = dice.uniform(stage.low, stage.high, (tries, 3))[:, None]
    y = dice.uniform(stage.height[0], stage.height[1], (tries, 1))
    ahead, bow = length * (time - 0.5), length * 4 * bend * time * (1 - time)
    walk = jnp.stack(
        [
            start[..., 0] + ahead * jnp.sin(bearing) + bow * jnp.cos(bearing),
            y + 0.02 * length * jnp.sin(5 * time + draw(0, 6)),
            start[..., 2] + ahead * jnp.cos(bearing) - bow * jnp.sin(bearing),
        ],
        axis=-1,
    )
    sway = draw(0, 0.04) * jnp.sin(6.28 * (time + draw()))
    pitch = draw(-0.1, 0.3) + draw(-0.1, 0.1) * time
    walk_gaze = _headings(yaw0 + turned * time + sway, pitch)

    # An orbit looks at its middle; spread cameras stand at uneven steps, distances and heights.
    middle = stage.focus + 0.15 * stage.radius[0] * dice.uniform(-1, 1, (tries, 1, 3))
    arc = stage.arc * share * draw(0.7, 1.3) * jnp.where(draw() < 0.5, 1.0, -1.0)
    arc = jnp.clip(arc, -2 * jnp.pi, 2 * jnp.pi)
    first = draw(0, 2 * jnp.pi)
    radius = draw(*stage.radius)
    uneven = jnp.sort(dice.uniform(0.0, 1.0, (tries, views)), axis=1)
    scatter = dice.uniform(-1, 1, (tries, views, 3))
    spread = kind == 2
    where = jnp.where(spread, 0.5 * uneven + 0.5 * time, time)
    angle = first + arc * where
    distance = radius * (1 + jnp.where(spread, 0.2, 0.0) * scatter[..., 0])
    rise = y + draw(-0.3, 0.3) * stage.radius[0] * (time - 0.5)
    rise = rise + jnp.where(spread, 0.2 * stage.radius[0], 0.0) * scatter[..., 1]
    orbit = jnp.stack(
        [
            middle[..., 0] + distance * jnp.cos(angle),
            jnp.clip(rise, stage.low[1], stage.high[1]),
            middle[..., 2] + distance * jnp.sin(angle),
        ],
        axis=-1,
    )
    look = middle + jnp.where(spread, 0.25 * stage.radius[0], 0.03) * scatter
    orbit_gaze = look - orbit

    # Looking outwards: small steps, a wide turn.
    sweep = draw(1.2, 3.2) * share * jnp.where(draw() < 0.5, 1.0, -1.0)
    angle = first + sweep * (time - 0.5)
    arm = draw(0.1, 0.35) * stage.stride
    outward = jnp.stack(
        [
            start[..., 0] * 0.5 + arm * jnp.sin(angle) + 0.3 * ahead,
            y + 0 * angle,
            start[..., 2] * 0.5 + arm * jnp.cos(angle),
        ],
        axis=-1,
    )
    out_gaze = _headings(angle, draw(-0.1, 0.25) + 0.05 * scatter[..., 0])

    def pick(walking, orbiting, outwards):
        return jnp.where(kind == 0, walking, jnp.where(kind == 3, outwards, orbiting))

    position = pick(walk, orbit, outward)
    gaze = pick(walk_gaze, orbit_gaze, out_gaze)
    roll = jnp.radians(config.roll) * (draw(-0.6, 0.6) + 0.4 * scatter[..., 2] * spread)
    return look_along(position, gaze, roll)


def _headings(yaw, pitch):
    level = jnp.cos(pitch) + 0 * yaw
    return jnp.stack([jnp.sin(yaw) * level, jnp.sin(pitch) + 0 * yaw, jnp.cos(yaw) * level], -1)


def look_along(
    position: Float[Array, "*b 3"], gaze: Float[Array, "*b 3"], roll: Float[Array, "*#b"]
) -> Float[Array, "*b 4 4"]:
    """Camera-to-world matrices at positions, looking along gazes, rolled; y is down."""
    ahead = gaze / jnp.linalg.norm(gaze, axis=-1, keepdims=True)
    down = jnp.array([0.0, 1.0, 0.0])
    right = jnp.cross(jnp.broadcast_to(down, ahead.shape), ahead)
    right = right / jnp.maximum(jnp.linalg.norm(right, axis=-1, keepdims=True), 1e-6)
    below = jnp.cross(ahead, right)
    c, s = jnp.cos(roll)[..., None], jnp.sin(roll)[..., None]
    right, below = c * right + s * below, c * below - s * right
    top = jnp.stack([right, below, ahead, position], axis=-1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, last], axis=-2)


def judge(
    scene: Scene,
    stage: Stage,
    poses,
    fxfycxcy,
    config: WorldsConfig,
    height: int,
    width: int,
    motion: Motion | None = None,
) -> Float[Array, " k"]:
    """How good candidates are: clear of everything above all, then with something to see."""
    tries, views = poses.shape[:2]
    position = poses[..., :3, 3]

    def at_time_of_views(measure: Callable[..., Any], *points: Float[Array, "k n *r 3"]) -> Any:
        """`measure(geometry, *points)` of points `[3, r]`, the geometry at their view's time."""
        if motion is None:
            geometry = scene.geometry(config.solids_at_once)
            return measure(geometry, *(x.reshape(-1, 3).T for x in points))

        def of_view(view):
            geometry = motion.scene_at(scene, motion.times[view]).geometry(config.solids_at_once)
            return measure(geometry, *(x[:, view].reshape(-1, 3).T for x in points))

        found = jax.lax.map(of_view, jnp.arange(views))  # [n, k·r]
        return jax.tree.map(lambda x: x.reshape(views, tries, -1).swapaxes(0, 1).reshape(-1), found)

    clear = at_time_of_views(solids.distance_to_solids, position).reshape(tries, views)
    walls = jnp.minimum(position - stage.low, stage.high - position).min(-1)
    clear = jnp.minimum(clear, walls + config.clearance)
    clear = jnp.clip(clear / max(config.clearance, 1e-3), -1, 1).min(1)

    step = (jnp.arange(_LOOKS) + 0.5) / _LOOKS
    x, y = jnp.meshgrid(step * width, step * height)
    x = (x.reshape(-1) - fxfycxcy[:, 2:3]) / fxfycxcy[:, 0:1]
    y = (y.reshape(-1) - fxfycxcy[:, 3:4]) / fxfycxcy[:, 1:2]
    rays = jnp.stack([x, y, jnp.ones_like(x)], -1)  # [n, 9, 3]
    rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
    rays = (poses[:, :, None, :3, :3] * rays[None, :, :, None, :]).sum(-1)
    origins = jnp.broadcast_to(position[:, :, None], rays.shape)
    flat_rays, flat_origins = rays.reshape(-1, 3).T, origins.reshape(-1, 3).T
    distance, index = at_time_of_views(solids.cast, origins, rays)
    geometry = scene.geometry(config.solids_at_once)  # of its shell nothing moves
    shell = index >= geometry.starts[3]
    glass, _ = in_window(scene, flat_origins + distance * flat_rays)
    open_ = shell & (scene.face_open[jnp.clip(index - geometry.starts[3], 0, 5)] | glass)
    shape = (tries, views, _LOOKS * _LOOKS)
    distance, open_, shell = (a.reshape(shape) for a in (distance, open_, shell))
    far_enough = jnp.clip(distance / (1.2 * stage.radius[0]), 0, 1).mean(-1)
    solid = (~shell).mean(-1)
    interest = far_enough.min(1) + 0.6 * solid.mean(1) + 0.4 * solid.min(1) - open_.mean((1, 2))
    return 4 * clear + interest
