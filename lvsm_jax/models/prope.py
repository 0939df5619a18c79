"""Cameras as relative positions in attention: PRoPE (arXiv 2507.10496), and GTA without intrinsics.

For a token of a camera with world-to-camera matrix `T` and intrinsics `K` divided by the image's
size, let `P = [[K, 0], [0, 1]] · T`. In a head of size `c`, half of the channels carry the camera
and a quarter each the column and the row of the token's patch:

    D = blockdiag(P, ..., P, RoPE(column), RoPE(row))
    o_i = D_i · attention(D_iᵀ q_i, D_j⁻¹ k_j, D_j⁻¹ v_j)

Logits and values then see cameras through `P_i P_j⁻¹` alone, so that no world frame matters, and
keys and values of a view can be kept. There are no weights. Inside one view `P_i P_j⁻¹` is the
identity, and what remains is RoPE.

Letters: `b` scenes, `v` views, `n` tokens a view, `m` heads, `c` head size, `f` frequencies.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.models.cameras import Cameras

_BASE = 100.0  # of the wavelengths of RoPE, in patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Positions:
    """Where the tokens of some views are: their cameras and patches."""

    projection: Any  # `[b, v, 4, 4]`, `P` of each view; None inside one view, where it cancels
    inverse: Any  # its inverse, or None
    cos: Any  # `[n, 2, f]` of the angles of column and row
    sin: Any

    @property
    def inside(self) -> "Positions":
        """For attention inside each of the views, where its camera cancels."""
        return dataclasses.replace(self, projection=None, inverse=None)

    def to_queries(self, q: Float[Array, "b v n m c"]) -> Float[Array, "b v n m c"]:
        """`Dᵀ q`."""
        matrix = None if self.projection is None else self.projection.mT
        return _apply(q, matrix, self.cos, -self.sin)

    def to_keys(self, x: Float[Array, "b v n m c"]) -> Float[Array, "b v n m c"]:
        """`D⁻¹ x`, of keys and of values."""
        return _apply(x, self.inverse, self.cos, -self.sin)

    def to_outputs(self, o: Float[Array, "b v n m c"]) -> Float[Array, "b v n m c"]:
        """`D o`."""
        return _apply(o, self.projection, self.cos, self.sin)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SequencePositions:
    """Where the tokens of sequences are that hold whole views, one after the other.

    Tokens may be those of the first views of each sequence alone. Letter: `k` sequences of a scene.
    """

    views: Positions  # of `[b, k·views]`: those of the first sequence come first
    count: int = dataclasses.field(metadata={"static": True})  # views of a sequence

    def to_queries(self, q: Float[Array, "b k s m c"]) -> Float[Array, "b k s m c"]:
        """`Dᵀ q`."""
        return self._by_view(Positions.to_queries, q)

    def to_keys(self, x: Float[Array, "b k s m c"]) -> Float[Array, "b k s m c"]:
        """`D⁻¹ x`, of keys and of values."""
        return self._by_view(Positions.to_keys, x)

    def to_outputs(self, o: Float[Array, "b k s m c"]) -> Float[Array, "b k s m c"]:
        """`D o`."""
        return self._by_view(Positions.to_outputs, o)

    def _by_view(self, apply: Callable, x: Float[Array, "b k s m c"]) -> Array:
        shown = x.shape[2] // len(self.views.cos)  # views of a sequence, from the first on

        def first(matrix: Float[Array, "b views 4 4"]) -> Float[Array, "b shown 4 4"]:
            by_sequence = einops.rearrange(matrix, "b (k v) i j -> b k v i j", v=self.count)
            return einops.rearrange(by_sequence[:, :, :shown], "b k v i j -> b (k v) i j")

        matrices = {name: first(getattr(self.views, name)) for name in ("projection", "inverse")}
        by_view = einops.rearrange(x, "b k (v n) m c -> b k v n m c", v=shown)
        by_view = einops.rearrange(by_view, "b k v n m c -> b (k v) n m c")
        moved = apply(dataclasses.replace(self.views, **matrices), by_view)
        by_view = einops.rearrange(moved, "b (k v) n m c -> b k v n m c", v=shown)
        return einops.rearrange(by_view, "b k v n m c -> b k (v n) m c")


def view_positions(
    encoding: str,
    cameras: Cameras,
    height: int,
    width: int,
    patch: int,
    head_dim: int,
    *,
    middle: float = 0.0,
) -> Positions:
    """For attention between views, and by `inside` for attention in each of them.

    Sizes are in pixels, `head_dim` is a multiple of 8. The encoding `gta` uses extrinsics alone.
    `middle` is taken off the principal point, which is in shares of the picture.
    """
    c2w = jnp.asarray(cameras.c2w, jnp.float32)
    rotation, position = c2w[..., :3, :3], c2w[..., :3, 3]
    # A rigid transform's inverse, written out: exact on every backend, and finite gradients.
    w2c = _rigid(rotation.mT, -(rotation.mT * position[..., None, :]).sum(-1))
    projection, inverse = w2c, c2w
    if encoding != "gta":
        size = jnp.array([width, height] * 2, jnp.float32)
        fx, fy, cx, cy = jnp.moveaxis(jnp.asarray(cameras.fxfycxcy, jnp.float32) / size, -1, 0)
        cx, cy = cx - middle, cy - middle
        one, zero = jnp.ones_like(fx), jnp.zeros_like(fx)
        k = _matrix([[fx, zero, cx], [zero, fy, cy], [zero, zero, one]])
        k_inverse = _matrix([[1 / fx, zero, -cx / fx], [zero, 1 / fy, -cy / fy], [zero, zero, one]])
        projection = _product(_rigid(k, jnp.zeros_like(position)), w2c)
        inverse = _product(c2w, _rigid(k_inverse, jnp.zeros_like(position)))
    return Positions(projection, inverse, *_angles(height // patch, width // patch, head_dim))


def _angles(rows: int, columns: int, head_dim: int) -> tuple[Array, Array]:
    """Cosines and sines for each token, row by row, of its column and its row."""
    frequencies = head_dim // 8
    rates = _BASE ** (-jnp.arange(frequencies, dtype=jnp.float32) / frequencies)
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    patches = jnp.stack([x.reshape(-1), y.reshape(-1)], axis=-1).astype(jnp.float32)
    angles = patches[..., None] * rates
    return jnp.cos(angles), jnp.sin(angles)


@jax.custom_vjp
def _apply(
    x: Float[Array, "b v n m c"], matrix: Array | None, cos: Array, sin: Array
) -> Float[Array, "b v n m c"]:
    """The matrix on the first half of the channels, by fours; rotations on the second, by pairs.

    Computed in float32, and one pass over memory in the dtype of `x`, in both directions: left to
    itself, XLA writes the norm before it, and parts of its gradient, in float32.
    """
    return _turned(jax.lax.optimization_barrier(x), matrix, cos, sin)


def _apply_forward(x: Array, *positions: Any) -> tuple[Array, tuple]:
    return _apply(x, *positions), (x, positions)


def _apply_backward(saved: tuple, g: Array) -> tuple:
    x, positions = saved
    matrix, cos, sin = positions
    to_x = _turned(g, None if matrix is None else matrix.mT, cos, -sin)
    _, to_positions = jax.vjp(lambda *positions: _turned(x, *positions), *positions)
    return jax.lax.optimization_barrier(to_x), *to_positions(g)


_apply.defvjp(_apply_forward, _apply_backward)


def _turned(
    x: Float[Array, "b v n m c"], matrix: Array | None, cos: Array, sin: Array
) -> Float[Array, "b v n m c"]:
    camera, patches = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    half = camera.shape
    if matrix is not None:
        by_fours = camera.reshape(*half[:-1], -1, 4)
        # Column by column, not a matmul: exact float32 on every backend, and nothing for a
        # matrix unit in products of four.
        columns = matrix[:, :, None, None, None]
        camera = sum(columns[..., i] * by_fours[..., i : i + 1] for i in range(4)).reshape(half)
    pairs = patches.reshape(*half[:-1], 2, 2, -1)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    cos, sin = cos[:, None], sin[:, None]  # the same for all heads
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-2)
    return jnp.concatenate([camera, turned.reshape(half)], axis=-1).astype(x.dtype)


def _rigid(matrix: Float[Array, "b v 3 3"], offset: Float[Array, "b v 3"]) -> Array:
    """`[b, v, 4, 4]` of a linear map and a translation."""
    upper = jnp.concatenate([matrix, offset[..., None]], axis=-1)
    # From `upper`, for it is on the devices where that is.
    last = jnp.zeros_like(upper[..., :1, :]) + jnp.array([0.0, 0, 0, 1])
    return jnp.concatenate([upper, last], axis=-2)


def _matrix(rows: list[list[Array]]) -> Float[Array, "b v r c"]:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _product(a: Float[Array, "b v 4 4"], b: Float[Array, "b v 4 4"]) -> Float[Array, "b v 4 4"]:
    """A small matmul in float32 on every backend."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(axis=-2)
