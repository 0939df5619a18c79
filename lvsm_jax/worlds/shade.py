"""Light: the sky, and what surfaces send back of sun, bulbs, windows and everything around."""

import jax
import jax.numpy as jnp

from lvsm_jax.worlds import solids
from lvsm_jax.worlds.noise import value_noise
from lvsm_jax.worlds.scene import Light, Scene
from lvsm_jax.worlds.surface import Surface, in_window

_LIFT = 2e-3  # metres above a surface, where its shadow rays start


def sky(light: Light, directions):
    """Radiance `[3, r]` of the sky and the land in unit directions."""
    x, y, z = directions
    up = -y
    cloud, _ = value_noise(4 * x / (jnp.abs(up) + 0.3), 6 * up, 4 * z / (jnp.abs(up) + 0.3))
    level = jnp.clip(up, 0, 1)
    blend = level * (2 - level)
    color = light.horizon[:, None] + (light.zenith - light.horizon)[:, None] * blend
    cloudy = jnp.clip(cloud * 1.5 * light.rough, 0, 1) * jnp.clip(level * 4, 0, 1)
    color = color + (jnp.max(light.horizon) * 1.1 - color) * 0.6 * cloudy
    toward = jnp.maximum((light.sun[:, None] * directions).sum(0), 0)
    glow = toward**8
    glow = 0.05 * glow + 0.3 * glow * glow * glow * glow
    color = color + light.sun_color[:, None] * 0.3 * glow
    ridge, _ = value_noise(9 * x, 0 * x, 9 * z)
    bushes, _ = value_noise(60 * x, 60 * y, 60 * z)
    height = light.rough * (0.07 + 0.06 * ridge + 0.02 * bushes)
    land = jnp.clip((height - up) * 60 + 0.5, 0, 1)
    near = light.ground[:, None] * (1 + light.rough * (0.5 * bushes + 0.3 * ridge))
    return color + (near - color) * land


def darken_corners(scene: Scene, geometry, surface: Surface, reach):
    """Share of ambient light that arrives, less in corners and below things: 0 to 1.

    It asks how far the nearest surface is from points above this one, at two heights.
    """
    share = 1.0
    for height, strength in ((0.3 * reach, 0.5), (reach, 0.55)):
        point = surface.point + height * surface.normal
        away = solids.distance_to_solids(geometry, point)
        for axis in range(3):
            away = jnp.minimum(away, point[axis] - scene.shell[0, axis])
            away = jnp.minimum(away, scene.shell[1, axis] - point[axis])
        open_ = jnp.clip(away / height, 0, 1)
        share = share * (1 - strength + strength * open_)
    return share


def light_up(scene: Scene, geometry, surface: Surface, directions, shift, *, shadows: bool):
    """Radiance `[3, r]` that surfaces send against unit `directions`.

    `shift` `[3, r]` is a vector within the unit ball by which lights are moved, so that a pixel's
    samples see different parts of them.
    """
    light, normal, point = scene.light, surface.bumped, surface.point
    start = point + _LIFT * surface.normal
    level = (0.5 - 0.5 * normal[1])[None]
    ambient = light.below[:, None] + (light.above - light.below)[:, None] * level
    incoming = ambient
    for middle, half in scene.windows:
        toward = middle[:, None] - point
        square = (toward * toward).sum(0)
        toward = toward / jnp.sqrt(square + 1e-6)
        area = 4 * (half[0] * half[1] + half[1] * half[2] + half[0] * half[2])
        inward = jnp.where(half < 0.1, 1.0, 0.0)[:, None] * toward
        facing = jnp.sqrt((inward * inward).sum(0))
        share = area * facing * jnp.maximum((normal * toward).sum(0), 0) / (square + area + 1e-6)
        incoming = incoming + 0.5 * (light.zenith + light.horizon)[:, None] * share * 0.4
    incoming = incoming * darken_corners(scene, geometry, surface, light.reach)
    # The sun comes first; a bulb's place is a point, the sun's a direction.
    places = jnp.concatenate([light.sun[None], light.bulbs])
    colors = jnp.concatenate([light.sun_color[None], light.bulb_colors])
    is_sun = jnp.arange(len(places)) == 0

    def add(carry, light):
        place, color, is_sun = light
        return jax.lax.cond(
            (color > 0).any(), _add, lambda *_: carry, carry, place, color, is_sun
        ), None

    def _add(carry, place, color, is_sun):
        incoming, highlight = carry
        toward = jnp.where(
            is_sun, place[:, None] + 0.02 * shift, place[:, None] + 0.06 * shift - start
        )
        square = (toward * toward).sum(0)
        direction = toward / jnp.sqrt(square)
        limit = jnp.sqrt(square) * 0.95
        away, face = solids.leave_shell(scene.shell, start, direction)
        glass, _ = in_window(scene, start + away * direction)
        limit = jnp.where(is_sun, away, limit)
        lit = ~is_sun | glass | scene.face_open[face]
        if shadows:
            lit = lit & ~solids.is_blocked(geometry, start, direction, limit)
        radiance = color[:, None] * lit / jnp.where(is_sun, 1.0, square + 0.2)
        cosine = jnp.maximum((normal * direction).sum(0), 0)
        middle = direction - directions
        middle = middle / jnp.sqrt((middle * middle).sum(0) + 1e-6)
        gloss = jnp.maximum((normal * middle).sum(0), 0) ** 32 * (cosine > 0)
        return incoming + radiance * cosine, highlight + radiance * gloss

    start_from = (incoming, jnp.zeros_like(incoming))
    (incoming, highlight), _ = jax.lax.scan(add, start_from, (places, colors, is_sun))
    return surface.color * (incoming + surface.glow) + surface.shine * highlight
