"""Scores of pictures where they are, on the devices of a mesh.

Letters: `b` scenes, `t` targets, `k` predictions of each, `g` groups of pixels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int8, UInt8

from lvsm_jax.parallel.mesh import axes_of, per_device


@jax.jit
def score(
    metrics: dict[str, Any], targets: UInt8[Array, "b t h w 3"], predictions: list[Array]
) -> dict[str, Float[Array, "b k t"]]:
    """Scores every prediction by every metric; dimensions of size 1 are broadcast."""
    # Images are scored where they are; baselines are moved to the targets.
    scenes, views = axes_of(targets)[:2]
    specs = [P(scenes, views if p.shape[1] > 1 else None) for p in predictions]
    if scenes or views:
        predictions = jax.tree.map(jax.reshard, predictions, specs)
    scored = per_device(_score_locally, (P(), P(scenes, views), specs), P(scenes, None, views))
    return scored(metrics, targets, predictions)


def _score_locally(
    metrics: dict[str, Any], targets: Array, predictions: list[Array]
) -> dict[str, Array]:
    def one_target(images: tuple[Array, list[Array]]) -> dict[str, Array]:
        target, predictions = images
        target, stacked = unit_range(target), jnp.stack([unit_range(p) for p in predictions])
        # The target is not mapped over: what a metric computes from it alone is computed once.
        return {k: jax.vmap(metric, (None, 0))(target, stacked) for k, metric in metrics.items()}

    predictions = [jnp.broadcast_to(p, targets.shape) for p in predictions]
    # One target of each scene at a time bounds the memory that LPIPS takes.
    targets, predictions = jax.tree.map(lambda x: x.swapaxes(0, 1), (targets, predictions))
    scores = jax.lax.map(one_target, (targets, predictions))
    return {k: x.transpose(2, 1, 0) for k, x in scores.items()}


@jax.jit
def errors_by_seen(
    seen: Int8[Array, "b t h w"] | None,
    targets: UInt8[Array, "b t h w 3"],
    predictions: list[Array],
) -> dict[str, Array] | None:
    """Pixels of each group of `SEEN_BY` `[b, t, g]`, and summed squared errors `[b, k, t, g]`.

    The error of a pixel is the mean over its colours, of values clipped to [0, 1].
    """
    if seen is None:
        return None
    return _errors_in(lambda seen: [seen == 0, seen == 1, seen > 1], seen, targets, predictions)


@jax.jit
def psnr_of_object(
    mask: Bool[Array, "b t h w"] | None,
    targets: UInt8[Array, "b t h w 3"],
    predictions: list[Array],
) -> dict[str, Array] | None:
    """PSNR over the pixels of the object `[b, k, t]`, and whether there are any `[b, t]`."""
    if mask is None:
        return None
    found = _errors_in(lambda mask: [mask], mask, targets, predictions)
    pixels = found["pixels"][..., 0]
    error = found["errors"][..., 0] / jnp.maximum(pixels, 1)[:, None]
    return {"psnr": -10 * jnp.log10(error), "there": pixels > 0}


def _errors_in(
    groups_of: Callable[[Array], list[Array]],
    known: Array,
    targets: Array,
    predictions: list[Array],
) -> dict[str, Array]:
    """Pixels `[b, t, g]` and summed squared errors `[b, k, t, g]` of groups of pixels.

    `groups_of` makes these, `[b, t, h, w]` each, of what is `known` of each pixel.
    """
    scenes, views = axes_of(targets)[:2]
    specs = [P(scenes, views if p.shape[1] > 1 else None) for p in predictions]
    if scenes or views:
        predictions = jax.tree.map(jax.reshard, predictions, specs)

    def locally(known: Array, targets: Array, predictions: list[Array]) -> dict[str, Array]:
        inside = jnp.stack(groups_of(known))  # [g, b, t, h, w]
        target = unit_range(targets)
        errors = [jnp.square(target - jnp.clip(unit_range(p), 0, 1)).mean(-1) for p in predictions]
        sums = jnp.stack([jnp.where(inside, error, 0.0).sum((-2, -1)) for error in errors])
        pixels = inside.sum((-2, -1), dtype=jnp.int32)
        return {"pixels": pixels.transpose(1, 2, 0), "errors": sums.transpose(2, 0, 3, 1)}

    to = {"pixels": P(scenes, views), "errors": P(scenes, None, views)}
    function = per_device(locally, (P(scenes, views), P(scenes, views), specs), to)
    return function(known, targets, predictions)


def unit_range(images: Array) -> Array:
    """The images in [0, 1], those of 8 bits as floats."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
