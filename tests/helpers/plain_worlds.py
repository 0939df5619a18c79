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


def make_plain_worlds(keys, config, *, views, height, width, complexity=1.0):
    """A wall of waves before cameras that walk and turn; dark with little complexity."""

    def one(key):
        waves, start = jax.random.split(key)
        along = jnp.linspace(0.0, 1.0, views)
        place = jax.random.uniform(start, (3,)) + along[:, None] * jnp.array([1.0, 0.3, 0.2])
        cosine, sine, zero = jnp.cos(along), jnp.sin(along), 0 * along
        rows = [[cosine, zero, sine], [zero, zero + 1, zero], [-sine, zero, cosine]]
        rotation = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
        c2w = jnp.zeros((views, 4, 4)).at[:, 3, 3].set(1)
        c2w = c2w.at[:, :3, :3].set(rotation).at[:, :3, 3].set(place)
        lens = jnp.array([width, width, width / 2, height / 2], jnp.float32)
        x, y = jnp.meshgrid(jnp.linspace(-1, 1, width), jnp.linspace(-1, 1, height))
        angle = x[..., None] * 4 + y[..., None] * jax.random.uniform(waves, (3,), maxval=9.0)
        images = complexity * (127 + 120 * jnp.sin(angle + along[:, None, None, None]))
        depth = jnp.where(y > -0.5, 2 + x + along[:, None, None], jnp.inf)
        cameras = Cameras(c2w, jnp.broadcast_to(lens, (views, 4)))
        return Worlds(images.astype(jnp.uint8), cameras, depth)

    return jax.lax.map(one, keys)
