"""Worlds that cost nothing to compile, for tests of what is done with worlds."""

import jax
import jax.numpy as jnp
import pytest

from lvsm_jax.models.cameras import Cameras
from lvsm_jax.worlds import stream
from lvsm_jax.worlds.generate import Worlds


def use_plain_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the generator in all that renders worlds."""
    monkeypatch.setattr(stream, "make_worlds", make_plain_worlds)
    stream.render_block.clear_cache()


def make_plain_worlds(keys, config, *, views, height, width, complexity=1.0, zooms=()):
    """A wall of waves at z = 3 under a sky, before cameras that walk to the right in a bow.

    Dark with little complexity. Of the middle of the path, the ends see some points both, some one
    of them, and some none.
    """

    def one(key):
        along = jnp.linspace(0.0, 1.0, views)
        place = jnp.stack([2.2 * along, 0.8 * jnp.sin(jnp.pi * along), 0.1 * along], -1)
        c2w = jnp.broadcast_to(jnp.eye(4), (views, 4, 4)).at[:, :3, 3].set(place)
        focal = jnp.full(views, width, jnp.float32)
        for position, factor in zooms:
            c2w = jnp.concatenate([c2w, c2w[position][None]])
            focal = jnp.concatenate([focal, focal[position][None] * factor])
        place, center = c2w[:, :3, 3], jnp.array([width / 2, height / 2])
        lens = [focal[:, None], focal[:, None], jnp.broadcast_to(center, (len(focal), 2))]
        x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
        depth = jnp.broadcast_to((3 - place[:, 2])[:, None, None], (len(focal), height, width))
        x = place[:, 0, None, None] + depth * (x - width / 2) / focal[:, None, None]
        y = place[:, 1, None, None] + depth * (y - height / 2) / focal[:, None, None]
        waves = jax.random.uniform(key, (2, 3), minval=1.0, maxval=9.0)
        colors = 127 + 120 * jnp.sin(x[..., None] * waves[0] + y[..., None] * waves[1])
        images = (complexity * colors).astype(jnp.uint8)
        cameras = Cameras(c2w, jnp.concatenate(lens, axis=-1))
        return Worlds(images, cameras, jnp.where(y < -0.9, jnp.inf, depth))

    return jax.lax.map(one, keys)
