"""A head that copies: colours fetched from the input views where a target token looks.

A small attention from the target's tokens to those of each input view by itself has coordinates as
values: its result is a place in that view, and its log-sum-exp says how well the view fits. Every
pixel of the target's patch fetches a colour near that place, on its epipolar line. The fetched
colours are blended over taps and views by learned weights, and mixed with what the model regresses.
A view in which the pixel moves less weighs more: a wrong depth does less harm there.

All is float32, whatever the model's dtype. Places do not depend on the world's frame and unit, and
know no time: what moved between two views lies on no epipolar line, and has to be regressed.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens of a target, `s` of an input
view, `m` taps, `c` channels of a tap, `i` pixels of a patch, `d` width of the model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lvsm_jax.models import layers
from lvsm_jax.models.attention import attention_with_lse, merge_attention
from lvsm_jax.models.blocked_attention import Partial
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.sharded_attention import gather_tokens, merge_devices
from lvsm_jax.parallel.mesh import axes_of, per_device, reshard, view_devices

TAPS = 2  # places in each view
CHANNELS = 32  # of a tap's keys and values; two channels of the latter are the coordinates

# Added to the logits of places that the input view does not show. In float32, logits around it are
# still exact to 1e-5.
_HIDDEN = -100.0
# Least depth of a point in the input view, over its depth in the target.
_NEAR = 0.05
# Largest inverse depth of a point in the target, times the distance of the two cameras.
_NEAREST = 100.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CopySource:
    """What the head reads of input views; that of a view depends on that view alone."""

    k: Any  # `[b, v, s, m, c]`
    v: Any  # `[b, v, s, m, c]`: column and row of the token in [-1, 1], then features
    images: Any  # `[b, v, h, w, ch]`: colours, and what else is to be copied
    cameras: Cameras  # `[b, v]`
    # `[b]` views that are there, in the order of a cache's slots (`rendering.slots`); None for all.
    num_views: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Targets:
    """What the target tokens ask for."""

    q: Any  # `[b, t, n, m, c]`
    pixels: Any  # `[b, t, n, 3, m, i]`: offsets of column and row in patches, logits of weights
    cameras: Cameras  # `[b, t]`


class CopyHead(nnx.Module):
    """Mixes regressed colours with such that are copied from the input views."""

    def __init__(self, width: int, patch_size: int, *, rngs: nnx.Rngs):
        self.patch_size, pixels = patch_size, patch_size**2
        spread = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        # At first: no offsets, taps and views weigh what attention says, half regressed.
        zeros = nnx.initializers.zeros

        def linear(inputs: int, outputs: int, init: layers.Init) -> layers.Linear:
            return layers.Linear(inputs, outputs, init=init, dtype="float32", rngs=rngs)

        self.norm = layers.LayerNorm(width, scale=False)
        self.to_q = linear(width, TAPS * CHANNELS, spread)
        self.to_kv = linear(width, TAPS * (2 * CHANNELS - 2), spread)
        self.to_pixels = linear(width, (3 * TAPS + 1) * pixels, zeros)
        self.from_features = linear(CHANNELS - 2, 3 * pixels, zeros)
        # At first a view weighs as one over the disparity that it shows.
        self.disparity_weight = nnx.Param(jnp.ones(()))

    def source(
        self,
        tokens: Float[Array, "b v s d"],
        images: Float[Array, "b v h w 3"],
        cameras: Cameras,
    ) -> CopySource:
        """What to keep of input views, from their tokens after the encoder's last layer."""
        with jax.default_matmul_precision("float32"):
            kv = self.to_kv(self.norm(tokens.astype(jnp.float32)))
        kv = einops.rearrange(kv, "b v s (m k) -> b v s m k", m=TAPS)
        k, features = kv[..., :CHANNELS], kv[..., CHANNELS:]
        height, width = images.shape[2:4]
        centers = _patch_pixels(height, width, self.patch_size).mean(axis=-1)
        places = (2 * centers / [[width], [height]] - 1).T[:, None]
        places = jnp.zeros_like(features[..., :2]) + jnp.asarray(places, jnp.float32)
        cameras = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), cameras.timeless)
        v = jnp.concatenate([places, features], axis=-1)
        return CopySource(k, v, images.astype(jnp.float32), cameras)

    def __call__(
        self,
        tokens: Float[Array, "b t n d"],
        regressed: Float[Array, "b t h w 3"],
        source: CopySource,
        cameras: Cameras,
    ) -> Float[Array, "b t h w 3"]:
        """The targets' images, from their tokens after the decoder's last layer."""
        gate, copied = self.copy(tokens, source, cameras, *regressed.shape[2:4])
        return gate * regressed + (1 - gate) * copied

    def copy(
        self,
        tokens: Float[Array, "b t n d"],
        source: CopySource,
        cameras: Cameras,
        height: int,
        width: int,
    ) -> tuple[Float[Array, "b t {height} {width} 1"], Float[Array, "b t {height} {width} ch"]]:
        """How much of each pixel is not copied, and what is: blends of all channels of `images`."""
        size, patch = (height, width), self.patch_size
        scenes, by_target, by_view = *axes_of(tokens)[:2], axes_of(source.k)[1]
        cameras = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), cameras.timeless)
        views = jax.tree.map(lambda _: P(scenes, by_view), source)
        if source.num_views is not None:
            views = dataclasses.replace(views, num_views=P(scenes))
        specs = P(scenes, by_target), views, P()
        with jax.default_matmul_precision("float32"):
            x = self.norm(tokens.astype(jnp.float32))
            q = einops.rearrange(self.to_q(x), "b t n (m c) -> b t n m c", m=TAPS)
            pixels, gate = jnp.split(self.to_pixels(x), [3 * TAPS * patch**2], axis=-1)
            pixels = einops.rearrange(pixels, "b t n (k m i) -> b t n k m i", k=3, m=TAPS)
            copy = functools.partial(_copy, size=size, patch=patch, sharded=by_target is not None)
            shared = self.from_features.kernel[...], self.disparity_weight[...]
            copied = per_device(copy, specs, P(scenes, by_target))(
                _Targets(q, pixels, cameras), source, jax.tree.map(reshard, shared)
            )
        return tuple(layers.unpatchify(x, patch, *size) for x in (jax.nn.sigmoid(gate), copied))


def _copy(
    targets: _Targets,
    source: CopySource,
    shared: tuple[Array, Array],
    *,
    size: tuple[int, int],
    patch: int,
    sharded: bool,
) -> Float[Array, "b t n ch_i"]:
    """What is copied for this device's targets, from the views of all devices along `view`."""
    targets = jax.tree.map(lambda x: gather_tokens(x, sharded), targets)
    # Of a token's column and row in [-1, 1] and its features, what all pixels of the patch get:
    # column and row in pixels, and a logit.
    kernel, disparity_weight = shared
    height, width, channels = source.images.shape[2:]
    unit = np.repeat([width / 2, height / 2, 1], patch**2)
    place = np.repeat(np.eye(2, 3), patch**2, axis=1)
    kernel = jnp.concatenate([place * unit, kernel * np.repeat([patch, patch, 1], patch**2)])
    middle = np.reshape([width / 2, height / 2, 0], (3, 1, 1))
    scale = np.reshape([patch, patch, 1], (3, 1, 1))
    targets = dataclasses.replace(targets, pixels=targets.pixels * scale + middle)
    rays = rays_of_patches(targets.cameras, *size, patch)
    # Nothing of the pixels is kept for the backward pass: that is faster on CPUs, too.
    shared = kernel, disparity_weight
    fetch = jax.checkpoint(functools.partial(_fetch, targets, rays, shared), prevent_cse=False)
    b, t, n, _, _, i = targets.pixels.shape
    nothing = jnp.zeros((b, t, n * i, channels)), jnp.full((b, t, n * i), -jnp.inf)
    views = dataclasses.replace(source, num_views=None)
    if source.num_views is None:
        views = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), views)
        partial, _ = jax.lax.scan(
            lambda done, view: (merge_attention(done, fetch(view)), None), nothing, views
        )
    else:
        partial = _copy_from_slots(fetch, nothing, views, source.num_views)
    out, _ = merge_devices(partial, jnp.float32, sharded)
    return einops.rearrange(out, "b t (n i) k -> b t n (i k)", i=i)


def _copy_from_slots(
    fetch: Callable[[CopySource], Partial], nothing: Partial, views: CopySource, num_views: Array
) -> Partial:
    """From the slots of this device that hold views; how many is known when the program runs."""
    device = jax.lax.axis_index("view") if view_devices() > 1 else 0
    own_views = (num_views - device + view_devices() - 1) // view_devices()

    def merge(slot: Array, done: Partial) -> Partial:
        view = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 1, False), views)
        there = (slot < own_views)[:, None, None]
        out, lse = fetch(view)
        # An empty slot may give anything, also NaN, which a weight of zero would not remove.
        out, lse = jnp.where(there[..., None], out, 0), jnp.where(there, lse, -jnp.inf)
        return merge_attention(done, (out, lse))

    return jax.lax.fori_loop(0, own_views.max(), merge, nothing)


def _fetch(
    targets: _Targets,
    rays: tuple[Array, Array],
    shared: tuple[Array, Array],
    view: CopySource,
) -> Partial:
    """Colours `[b, t, n·i, ch]` that the pixels find in a view, and the log of their weight."""
    (kernel, disparity_weight), (height, width) = shared, view.images.shape[1:3]
    q = einops.rearrange(targets.q, "b t n m c -> b (t n) m c")
    found, score = attention_with_lse(q, view.k, view.v, implementation="blocked")
    b, t, n, _, m, _ = targets.pixels.shape
    read = (found.reshape(-1, found.shape[-1]) @ kernel).reshape(b, t, n, m, 3, -1)
    p_x, p_y, logits = (targets.pixels[:, :, :, k] + read[..., k, :] for k in range(3))
    near_x, near_y = _patch_around_token(rays, view.cameras)
    p_x, p_y = p_x + near_x, p_y + near_y
    (start_x, start_y), (line_x, line_y), in_front = epipolar_lines(
        rays, view.cameras, targets.cameras
    )
    # The nearest point of the line; without a baseline its start.
    along = line_x * (p_x - start_x) + line_y * (p_y - start_y)
    along = jnp.clip(along / (line_x**2 + line_y**2 + 1e-12), 0, 1)
    p_x, p_y = start_x + along * line_x, start_y + along * line_y
    # In pixels; nearly zero without a baseline, where the square root has no gradient.
    disparity = along * jnp.sqrt(line_x**2 + line_y**2 + 1e-12)
    logits -= disparity_weight * jnp.log1p(disparity)
    shown = in_front & (p_x >= 0) & (p_x <= width) & (p_y >= 0) & (p_y <= height)
    logits += score.reshape(b, t, n, m, 1) + jnp.where(shown, 0.0, _HIDDEN)
    colors = sample(view.images, p_x, p_y)
    lse = jax.nn.logsumexp(logits, axis=3)
    weights = jnp.exp(logits - lse[..., None, :])
    out = jnp.stack([(weights * color).sum(axis=3) for color in colors], axis=-1)
    return tuple(einops.rearrange(x, "b t n i ... -> b t (n i) ...") for x in (out, lse))


def epipolar_lines(
    rays: tuple[Array, Array], view: Cameras, targets: Cameras
) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
    """Where the rays of the targets' pixels lie in the view, as far as in front of both cameras.

    A line's start, in pixels of the view, is infinitely far, or where the ray comes into view. Then
    what to add to get to its end, and whether it is in front of the view at all.
    """
    rotation, baseline = _relative(view, targets)
    (x, y), (fx, fy, cx, cy) = rays, _intrinsics(view)

    def component(i: int) -> tuple[Array, Array]:
        r = rotation[..., i, :, None, None, None]
        return r[:, :, 0] * x + r[:, :, 1] * y + r[:, :, 2], baseline[..., i, None, None, None]

    (a_x, b_x), (a_y, b_y), (a_z, b_z) = (component(i) for i in range(3))
    # Over its depth in the target, a point is a + q·b in the view's axes, with the inverse depth q
    # in units of the baseline. Those with a z of _NEAR and more are in front.
    toward, away = b_z > 1e-6, b_z < -1e-6
    first = jnp.where(toward, (_NEAR - a_z) / jnp.where(toward, b_z, 1), 0)
    last = jnp.where(away, (a_z - _NEAR) / jnp.where(away, -b_z, 1), _NEAREST)
    first = jnp.clip(first, 0, _NEAREST)
    last = jnp.clip(last, first, _NEAREST)

    def place(q: Array) -> tuple[Array, Array]:
        z = jnp.maximum(a_z + q * b_z, _NEAR / 2)
        return (a_x + q * b_x) / z * fx + cx, (a_y + q * b_y) / z * fy + cy

    start, end = place(first), place(last)
    line = end[0] - start[0], end[1] - start[1]
    return start, line, a_z + last * b_z > _NEAR / 2


def _patch_around_token(rays: tuple[Array, Array], view: Cameras) -> tuple[Array, Array]:
    """Where the pixels of a patch are around its centre, in pixels of a view."""
    fx, fy, _, _ = _intrinsics(view)
    x, y = (at - at.mean(axis=-1, keepdims=True) for at in rays)
    return x * fx, y * fy


def _intrinsics(view: Cameras) -> Float[Array, "4 b 1 1 1 1"]:
    return jnp.moveaxis(view.fxfycxcy, -1, 0)[..., None, None, None, None]


def _relative(view: Cameras, target: Cameras):
    """Rotation `[b, t, 3, 3]` from targets' axes to the view's, and unit baseline `[b, t, 3]`."""
    to_view = view.c2w[:, None, :3, :3].mT
    # Not matmuls: exact float32 on every backend.
    rotation = (to_view[..., :, :, None] * target.c2w[..., None, :3, :3]).sum(axis=-2)
    baseline = target.c2w[..., :3, 3] - view.c2w[:, None, :3, 3]
    baseline = (to_view * baseline[..., None, :]).sum(axis=-1)
    square = jnp.square(baseline).sum(axis=-1, keepdims=True)
    return rotation, baseline * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def rays_of_patches(cameras: Cameras, height: int, width: int, patch: int) -> tuple[Array, Array]:
    """X and y at depth 1 of all pixels, `[b, t, n, 1, i]`, in the camera's axes."""
    fx, fy, cx, cy = (x[..., None, None, None] for x in jnp.moveaxis(cameras.fxfycxcy, -1, 0))
    columns, rows = jnp.asarray(_patch_pixels(height, width, patch)[:, :, None], jnp.float32)
    return (columns - cx) / fx, (rows - cy) / fy


def _patch_pixels(height: int, width: int, patch: int) -> Float[np.ndarray, "2 n i"]:
    """Column and row of the pixels' centres, in the order of `layers.patchify`."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    patches = "k (y p) (x q) -> k (y x) (p q)"
    return einops.rearrange(np.stack([columns, rows]), patches, p=patch, q=patch)


def sample(
    images: Float[Array, "b h w ch"], x: Float[Array, "b *batch"], y: Float[Array, "b *batch"]
) -> tuple[Float[Array, "b *batch"], ...]:
    """Each channel at these places, bilinear; outside of the image that of its border.

    Places are in pixels, with the centre of the first at 0.5.
    """
    b, height, width, channels = images.shape
    x, y = jnp.clip(x - 0.5, 0, width - 1), jnp.clip(y - 0.5, 0, height - 1)
    left, top = (
        jnp.clip(jnp.floor(jax.lax.stop_gradient(at)), 0, max(side - 2, 0))
        for at, side in ((x, width), (y, height))
    )
    right, down = x - left, y - top
    index = (top.astype(jnp.int32) * width + left.astype(jnp.int32)).reshape(b, -1)
    next_column, next_row = min(width - 1, 1), width * min(height - 1, 1)

    def color(plane: Float[Array, "b hw"]) -> Array:
        # By channels: on CPUs three times as fast, with the gradient, as gathering rows of three.
        def at(step: int) -> Array:
            shifted = plane[:, step:]  # one index serves all corners
            corner = jnp.take_along_axis(shifted, index, 1, mode="promise_in_bounds")
            return corner.reshape(x.shape)

        above = at(0) * (1 - right) + at(next_column) * right
        below = at(next_row) * (1 - right) + at(next_row + next_column) * right
        return above * (1 - down) + below * down

    planes = jnp.moveaxis(jax.lax.stop_gradient(images), -1, 0).reshape(channels, b, -1)
    return tuple(color(plane) for plane in planes)
