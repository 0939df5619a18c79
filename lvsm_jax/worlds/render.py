"""Pictures of one scene: rays through pixels, what they meet, and one bounce off mirrors."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lvsm_jax.worlds import shade, solids, surface
from lvsm_jax.worlds.branches import when
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.motion import Motion
from lvsm_jax.worlds.scene import PANES, Scene

_BRIGHTEST = 6.0  # radiance of a sample, at most: one highlight is not to fill its pixel
_FAINT = 0.02  # share of a reflection that is not worth following


def render(
    scene: Scene,
    c2w: Float[Array, "n 4 4"],
    fxfycxcy: Float[Array, "n 4"],
    height: int,
    width: int,
    config: WorldsConfig,
    motion: Motion | None = None,
) -> tuple[Float[Array, "n h w 3"], Float[Array, "n h w"], Float[Array, "n h w 3"] | None]:
    """Linear radiance of each pixel, depth along z at its centre, and the way of the point there.

    Depth is infinite for the sky. With `motion` each view shows the scene at its own time; ways,
    how far points go while time goes from 0 to 1, are None without.
    """

    def prepare(scene: Scene) -> tuple[solids.Geometry, Float[Array, "numbers surfaces"]]:
        geometry = scene.geometry(config.solids_at_once)
        parts = surface.surface_rows(geometry), scene.surface_materials(geometry)
        return geometry, jnp.concatenate(parts, axis=1).T

    at_rest = prepare(scene)
    rows = _rows_at_once(height, width * config.samples, config.rays_at_once)
    offsets = sample_offsets(config.samples)
    panes = solids.pack(scene.panes)

    def rays(pose, lens, first_row):
        """Directions through pixel centres, of length 1 along z, and unit ones of all samples."""
        x = jnp.arange(width, dtype=jnp.float32) + 0.5
        y = first_row + jnp.arange(rows, dtype=jnp.float32) + 0.5
        x, y = (a.reshape(-1) for a in jnp.broadcast_arrays(x, y[:, None]))
        xs = jnp.concatenate([x + dx for dx, _ in offsets])
        ys = jnp.concatenate([y + dy for _, dy in offsets])
        directions = _directions(pose, lens, xs, ys)
        return _directions(pose, lens, x, y), directions / jnp.sqrt((directions**2).sum(0))

    def block(view, first_row):
        pose, lens = c2w[view], fxfycxcy[view]
        centers, directions = when(lens[0] > 0, rays, pose, lens, first_row)
        geometry, table = at_rest
        if motion is not None:  # a line, so that no ray's loop computes it again
            scene_now = motion.scene_at(scene, motion.times[view])
            geometry, table = when(lens[0] > 0, prepare, scene_now)
        from_camera = jnp.broadcast_to(pose[:3, 3:], centers.shape)
        depth, index = _depth(scene, geometry, from_camera, centers)
        ways = None
        if motion is not None:
            ways = jnp.where(jnp.isfinite(depth), motion.ways(geometry)[index].T, 0.0)
        pixels = centers.shape[1]
        shift = jnp.repeat(light_shifts(len(offsets)).T, pixels, axis=1)
        origins = jnp.broadcast_to(pose[:3, 3:], directions.shape)
        color = _radiance(
            scene, geometry, table, panes, origins, directions, 1 / lens[0], shift, config
        )
        color = jnp.clip(color, 0, _BRIGHTEST).reshape(3, len(offsets), pixels).mean(1)
        return color, depth, ways

    views, blocks = c2w.shape[0], height // rows
    number = jnp.arange(views * blocks)
    color, depth, ways = jax.lax.map(
        lambda i: block(i // blocks, (i % blocks * rows).astype(jnp.float32)), number
    )
    color = jnp.moveaxis(color, 1, -1).reshape(views, height, width, 3)
    if ways is not None:
        ways = jnp.moveaxis(ways, 1, -1).reshape(views, height, width, 3)
    return color, depth.reshape(views, height, width), ways


def _rows_at_once(height: int, rays_in_row: int, rays: int) -> int:
    """The most rows of pixels that divide the height and have no more rays; at least one."""
    most = max(1, rays // rays_in_row)
    return max(rows for rows in range(1, height + 1) if height % rows == 0 and rows <= most)


def sample_offsets(samples: int) -> list[tuple[float, float]]:
    """Places of a pixel's samples, from its centre: all columns and rows differ; mean 0."""
    step = next(k for k in (1, 2, 3, 5, 7) if k >= samples**0.5 * 0.8 and _coprime(k, samples))
    return [
        ((i + 0.5) / samples - 0.5, (i * step % samples + 0.5) / samples - 0.5)
        for i in range(samples)
    ]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def light_shifts(samples: int) -> Float[np.ndarray, "samples 3"]:
    """Vectors in the unit ball, one for each sample, whose mean is 0: a golden spiral."""
    number = np.arange(samples) + 0.5
    height, turn = 1 - 2 * number / samples, np.pi * (1 + 5**0.5) * number
    level = np.sqrt(1 - height**2)
    shifts = 0.8 * np.stack([level * np.cos(turn), height, level * np.sin(turn)], axis=1)
    return (shifts - shifts.mean(0)).astype(np.float32)


def _directions(pose, lens, x, y):
    """Directions `[3, r]` in the world with a length of 1 along z; the matmul is written out."""
    x, y = (x - lens[2]) / lens[0], (y - lens[3]) / lens[1]
    return jnp.stack([pose[i, 0] * x + pose[i, 1] * y + pose[i, 2] for i in range(3)])


def _depth(scene, geometry, origins, directions):
    """Depth of what rays meet first, and its index."""
    distance, index = solids.cast(geometry, origins, directions)
    face = jnp.clip(index - geometry.starts[3], 0, 5)
    glass, _ = surface.in_window(scene, origins + distance * directions)
    shell = index >= geometry.starts[3]
    sky = shell & (scene.face_open[face] | glass | (distance > solids.FAR / 2))
    return jnp.where(sky, jnp.inf, distance), index


def _radiance(scene, geometry, table, panes, origins, directions, pixel, shift, config):
    """Radiance `[3, r]` along rays with unit directions."""

    def light_up(met, directions):
        return shade.light_up(scene, geometry, met, directions, shift, shadows=config.shadows)

    def follow(state):
        """One leg of the way: what is met adds its light, and the rays go on from mirrors."""
        leg, radiance, weight, origins, directions = state
        distance, index = solids.cast(geometry, origins, directions)
        width = pixel * (1 + leg)
        met = surface.at(scene, geometry, table, origins, directions, distance, index, width)
        lit = when(~met.sky.all(), light_up, met, directions)
        above = when(met.sky.any(), shade.sky, scene.light, directions)
        color = jnp.where(met.sky, above, lit)
        if not config.mirrors:
            return leg + 1, color, weight, origins, directions
        color, share, tint, point, normal = _look_through(
            scene, panes, origins, directions, distance, met, color
        )
        share = jnp.where(leg == 0, share, 0.0)
        along = (normal * directions).sum(0)
        mirrored = directions - 2 * along * normal
        lifted = point + 2e-3 * jnp.where(along > 0, -normal, normal)
        radiance = radiance + weight * (1 - share) * color
        return leg + 1, radiance, weight * share * tint, lifted, mirrored

    def goes_on(state):
        leg, _, weight, _, _ = state
        return (leg == 0) | (weight > _FAINT).any()

    start = (jnp.int32(0), jnp.zeros_like(directions), jnp.ones_like(directions))
    state = (*start, origins, directions)
    if not config.mirrors:
        return follow(state)[1]
    return jax.lax.while_loop(goes_on, follow, state)[1]


def _look_through(scene, panes, origins, directions, distance, met, color):
    """Panes before what was met: the colour behind them, and where mirrored rays go on from.

    Returns the colour, the share of it that is a reflection instead, the tint of that, and the
    point and normal where it is reflected.
    """
    cosine = jnp.abs((met.bumped * directions).sum(0))
    mirror = met.mirror
    share = jnp.clip(mirror * (mirror + (1 - mirror) * 5 * _grazing(cosine)), 0, 1)
    share = jnp.where(met.sky, 0, share)
    point, normal, tint = met.point, met.bumped, 1 - 0.3 * (1 - met.color)
    for number in range(PANES):
        row = panes[number]
        enter = solids.meet(0, row, origins, directions)
        before = (enter < distance) & (number < scene.panes.count)
        thin = jnp.argmin(row[12:15])
        across = jax.lax.dynamic_slice_in_dim(row, 3 * thin, 3)
        across = across / jnp.sqrt((across * across).sum())
        slant = jnp.abs((across[:, None] * directions).sum(0))
        color = jnp.where(before, color * 0.92, color)
        share = jnp.where(before, 0.04 + 0.96 * _grazing(slant), share)
        point = jnp.where(before, origins + enter * directions, point)
        normal = jnp.where(before, across[:, None], normal)
        tint = jnp.where(before, 1.0, tint)
        distance = jnp.where(before, enter, distance)
    return color, share, tint, point, normal


def _grazing(cosine):
    """Schlick's (1 - cosine)^5."""
    rest = jnp.clip(1 - cosine, 0, 1)
    square = rest * rest
    return square * square * rest
