"""Pictures of one scene: rays through pixels, what they meet, and one bounce off mirrors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.worlds import shade, solids, surface
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.scene import PANES, Scene

_BRIGHTEST = 6.0  # radiance of a sample, at most: one highlight is not to fill its pixel


def render(
    scene: Scene,
    c2w: Float[Array, "n 4 4"],
    fxfycxcy: Float[Array, "n 4"],
    height: int,
    width: int,
    config: WorldsConfig,
) -> tuple[Float[Array, "n h w 3"], Float[Array, "n h w"]]:
    """Linear radiance of each pixel, and depth along z at its centre, infinite for the sky."""
    geometry = scene.geometry()
    table = jnp.concatenate(
        [surface.surface_rows(geometry), scene.surface_materials(geometry)], axis=1
    )
    rows = _rows_at_once(height, width * config.samples, config.rays_at_once)
    offsets = sample_offsets(config.samples)
    panes = solids.pack(scene.panes)

    def block(view, first_row):
        pose, lens = c2w[view], fxfycxcy[view]
        x = jnp.arange(width, dtype=jnp.float32) + 0.5
        y = first_row + jnp.arange(rows, dtype=jnp.float32) + 0.5
        x, y = jnp.broadcast_arrays(x, y[:, None])
        x, y = x.reshape(-1), y.reshape(-1)
        centers = _directions(pose, lens, x, y)
        origins = jnp.broadcast_to(pose[:3, 3:], centers.shape)
        distance, index = solids.cast(geometry, origins, centers)
        depth = _depth(scene, geometry, origins + distance * centers, distance, index)
        xs = jnp.concatenate([x + dx for dx, _ in offsets])
        ys = jnp.concatenate([y + dy for _, dy in offsets])
        directions = _directions(pose, lens, xs, ys)
        directions /= jnp.sqrt((directions * directions).sum(0))
        shift = jnp.concatenate(
            [jnp.broadcast_to(s[:, None], (3, x.size)) for s in light_shifts(len(offsets))], axis=1
        )
        origins = jnp.broadcast_to(pose[:3, 3:], directions.shape)
        color = _radiance(
            scene, geometry, table, panes, origins, directions, 1 / lens[0], shift, config
        )
        color = jnp.clip(color, 0, _BRIGHTEST).reshape(3, len(offsets), x.size).mean(1)
        return color, depth

    views, blocks = c2w.shape[0], height // rows
    number = jnp.arange(views * blocks)
    color, depth = jax.lax.map(
        lambda i: block(i // blocks, (i % blocks * rows).astype(jnp.float32)), number
    )
    color = jnp.moveaxis(color, 1, -1).reshape(views, height, width, 3)
    return color, depth.reshape(views, height, width)


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


def light_shifts(samples: int) -> list[Array]:
    """Vectors in the unit ball, one for each sample; the only one's is 0."""
    if samples == 1:
        return [jnp.zeros(3)]
    shifts = jax.random.ball(jax.random.key(samples), 3, shape=(samples,))
    return list(shifts - shifts.mean(0))


def _directions(pose, lens, x, y):
    """Directions `[3, r]` in the world with a length of 1 along z; the matmul is written out."""
    x, y = (x - lens[2]) / lens[0], (y - lens[3]) / lens[1]
    return jnp.stack([pose[i, 0] * x + pose[i, 1] * y + pose[i, 2] for i in range(3)])


def _depth(scene, geometry, point, distance, index):
    face = jnp.clip(index - geometry.starts[3], 0, 5)
    glass, _ = surface.in_window(scene, point)
    shell = index >= geometry.starts[3]
    sky = shell & (scene.face_open[face] | glass | (distance > solids.FAR / 2))
    return jnp.where(sky, jnp.inf, distance)


def _radiance(scene, geometry, table, panes, origins, directions, pixel, shift, config):
    """Radiance `[3, r]` along rays with unit directions."""
    options = {"shadows": config.shadows, "bulbs": config.bulbs}

    def follow(origins, directions, pixel):
        distance, index = solids.cast(geometry, origins, directions)
        met = surface.at(scene, geometry, table, origins, directions, distance, index, pixel)
        lit = shade.light_up(scene, geometry, met, directions, shift, **options)
        color = jnp.where(met.sky, shade.sky(scene.light, directions), lit)
        return color, met, distance

    color, met, distance = follow(origins, directions, pixel)
    if not config.mirrors:
        return color
    cosine = jnp.abs((met.bumped * directions).sum(0))
    mirror = met.mirror
    share = jnp.where(met.sky, 0, mirror * (mirror + (1 - mirror) * 5 * _grazing(cosine)))
    share = jnp.clip(share, 0, 1)
    point, normal, tint = met.point, met.bumped, 1 - 0.3 * (1 - met.color)
    for number in range(PANES):
        row = panes[number]
        met_pane = solids.meet(0, row, origins, directions)
        inside = (met_pane < distance) & (number < scene.panes.count)
        thin = jnp.argmin(row[12:15])
        across = jnp.stack([row[3 * thin + j] for j in range(3)])
        across = across / jnp.sqrt((across * across).sum())
        slant = jnp.abs((across[:, None] * directions).sum(0))
        color = jnp.where(inside, color * 0.92, color)
        share = jnp.where(inside, 0.04 + 0.96 * _grazing(slant), share)
        point = jnp.where(inside, origins + met_pane * directions, point)
        normal = jnp.where(inside, across[:, None], normal)
        tint = jnp.where(inside, 1.0, tint)
        distance = jnp.where(inside, met_pane, distance)

    def reflect(color):
        along = (normal * directions).sum(0)
        mirrored = directions - 2 * along * normal
        lifted = point + 2e-3 * jnp.where(along > 0, -normal, normal)
        seen, _, _ = follow(lifted, mirrored, 2 * pixel)
        return color + (seen * tint - color) * share

    return jax.lax.cond((share > 0.02).any(), reflect, lambda color: color, color)


def _grazing(cosine):
    """Schlick's (1 - cosine)^5."""
    rest = jnp.clip(1 - cosine, 0, 1)
    square = rest * rest
    return square * square * rest
