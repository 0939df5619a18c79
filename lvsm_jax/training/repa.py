"""REPA (arXiv 2410.06940): a model's tokens are trained to predict a frozen teacher's features."""

import dataclasses
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lvsm_jax.common.checks import check_at_least, check_choice
from lvsm_jax.common.errors import UserError
from lvsm_jax.frozen.dino import TEACHERS, Dino
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.models.layers import Linear, recomputed, stack_layers
from lvsm_jax.parallel.mesh import axes_of, per_device

# A student's layer and a teacher's block, each counted from 1.
Pair = tuple[int, int]

# The reference leaves torch's default initialisation in the projector.
_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class RepaConfig:
    """Which layers are aligned with which blocks; with a weight of 0.5, defaults are as published.

    Attributes:
        weight: of the loss beside the others; 0 for no teacher at all.
        encoder: pairs of a layer of the encoder and a block of the teacher, as `2:8` or `2:8,6:12`,
            counted from 1; the teacher looks at the input views. Empty for none.
        decoder: the same of the decoder; the teacher looks at the target views. A pair that both
            streams have shares one projector.
        distance: `smooth_l1` (beta 1), `l2` or `cosine` (1 - cosine similarity).
        hidden: channels between the three linear maps of a projector.
        stop_step: from this step, counted from 0, the loss is 0 and the teacher idle; 0: never.
        teacher: a name in `lvsm_jax.frozen.dino.TEACHERS`.
        teacher_weights: path of its weights; empty for the authors' file in `weights/`.
    """

    weight: float = 0.0
    encoder: str = "2:8"
    decoder: str = "2:8"
    distance: str = "smooth_l1"
    hidden: int = 2048
    stop_step: int = 0
    teacher: str = "dinov3_vitb16"
    teacher_weights: str = ""

    def __post_init__(self):
        check_at_least("repa", self, weight=0, hidden=1, stop_step=0)
        check_choice("repa.distance", self.distance, DISTANCES)
        check_choice("repa.teacher", self.teacher, TEACHERS)
        blocks = TEACHERS[self.teacher].num_layers
        for field, pairs in (("encoder", self.encoder_pairs), ("decoder", self.decoder_pairs)):
            if any(block > blocks for _, block in pairs):
                text = getattr(self, field)
                raise UserError(f"repa.{field} is {text!r}, but {self.teacher} has {blocks} blocks")
        if self.weight and not self.pairs:
            raise UserError("repa.weight is above 0, but repa.encoder and repa.decoder are empty")

    @property
    def encoder_pairs(self) -> tuple[Pair, ...]:
        """`encoder`, parsed."""
        return _pairs("encoder", self.encoder)

    @property
    def decoder_pairs(self) -> tuple[Pair, ...]:
        """`decoder`, parsed."""
        return _pairs("decoder", self.decoder)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs of both streams without repetition, in the order of their projectors."""
        return tuple(dict.fromkeys(self.encoder_pairs + self.decoder_pairs))

    @property
    def structure(self) -> dict[str, Any]:
        """The fields that decide which weights there are, and what they mean."""
        if not self.weight:
            return {"weight": 0}
        fields = ("teacher", "hidden", "encoder", "decoder")
        return {"weight": "above 0"} | {field: getattr(self, field) for field in fields}

    def check_fits(self, model: ModelConfig) -> None:
        """Raises UserError unless the model has these layers."""
        if not self.weight:
            return
        if not isinstance(model, EfficientLVSMConfig):
            raise UserError("repa.weight is above 0, but only EfficientLVSM has two streams")
        if any(layer > model.num_layers for layer, _ in self.pairs):
            raise UserError(
                f"repa.encoder {self.encoder!r} and repa.decoder {self.decoder!r}: the model has "
                f"{model.num_layers} layers"
            )


def _pairs(field: str, text: str) -> tuple[Pair, ...]:
    found = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in text.split(",") if text]
    pairs = tuple((int(pair[1]), int(pair[2])) for pair in found if pair)
    if len(pairs) < len(found) or any(0 in pair for pair in pairs):
        raise UserError(
            f"repa.{field} is {text!r}, expected pairs of a layer and a teacher's block, "
            "counted from 1, such as '2:8' or '2:8,6:12'"
        )
    return pairs


class Projector(nnx.Module):
    """`width → hidden → hidden → features` with SiLU between, and biases."""

    def __init__(self, width: int, hidden: int, features: int, *, dtype: str, rngs: nnx.Rngs):
        options = {"init": _INIT, "dtype": dtype, "rngs": rngs, "bias": True}
        self.first = Linear(width, hidden, **options)
        self.second = Linear(hidden, hidden, **options)
        self.third = Linear(hidden, features, **options)

    def __call__(self, tokens: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """Projects tokens to the teacher's features."""
        return self.third(jax.nn.silu(self.second(jax.nn.silu(self.first(tokens)))))


def new_projectors(config: RepaConfig, model: ModelConfig, rngs: nnx.Rngs) -> Projector | None:
    """A projector for each of `config.pairs`, in one module with stacked arrays."""
    if not config.weight:
        return None
    sizes = model.width, config.hidden, TEACHERS[config.teacher].width
    return stack_layers(
        lambda _, rngs: Projector(*sizes, dtype=model.dtype, rngs=rngs), len(config.pairs), rngs
    )


class Stream(NamedTuple):
    """For each pair the tokens `[b, v, n, d]` of images `[b, v, h, w, 3]` in [0, 1]."""

    pairs: tuple[Pair, ...]
    images: Array
    tokens: tuple[Array, ...]


def repa_loss(
    config: RepaConfig,
    projectors: Projector,
    teacher: Dino,
    streams: Sequence[Stream],
    *,
    patch_size: int,
    remat: str = "none",
) -> Float[Array, ""]:
    """Distance of projected tokens and the teacher's features, averaged over everything.

    `patch_size` is the student's; `remat` says what the backward pass recomputes of projectors.
    """

    def align(projector: Projector, tokens: Array, features: Array) -> Array:
        return DISTANCES[config.distance](projector(tokens).astype(jnp.float32), features)

    align, total, views = recomputed(align, remat), jnp.zeros(()), 0
    for pairs, images, tokens in streams:
        if not pairs:
            continue
        blocks = tuple(block for _, block in pairs)
        grid = images.shape[2] // patch_size, images.shape[3] // patch_size
        features = teacher_features(teacher, images, blocks, grid)
        for i, pair in enumerate(pairs):
            projector = jax.tree.map(operator.itemgetter(config.pairs.index(pair)), projectors)
            # Each view counts alike, of whichever stream.
            total += images.shape[1] * align(projector, tokens[i], features[:, :, i])
            views += images.shape[1]
    return total / views


def teacher_features(
    teacher: Dino, images: Float[Array, "b v h w 3"], blocks: tuple[int, ...], grid: tuple[int, int]
) -> Float[Array, "b v k n e"]:
    """Features of every view after `k` blocks, on the student's grid of `n` tokens, in float32."""

    def own(teacher: Dino, images: Array) -> Array:
        flat = images.reshape(-1, *images.shape[2:])
        stacked = jnp.stack(teacher.features(flat, blocks, grid), axis=1)
        return stacked.reshape(*images.shape[:2], len(blocks), -1, stacked.shape[-1])

    views = P(*axes_of(images)[:2])
    return jax.lax.stop_gradient(per_device(own, (P(), views), views)(teacher, images))


def _smooth_l1(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, ""]:
    far = jnp.abs(a - b)
    return jnp.where(far < 1, 0.5 * jnp.square(far), far - 0.5).mean()


def _l2(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.square(a - b).mean()


def _cosine(a: Float[Array, "*batch e"], b: Float[Array, "*batch e"]) -> Float[Array, ""]:
    length_a, length_b = (jnp.sqrt(jnp.square(x).sum(axis=-1) + 1e-12) for x in (a, b))
    return (1 - (a * b).sum(axis=-1) / (length_a * length_b)).mean()


DISTANCES: dict[str, Callable[[Array, Array], Array]]
DISTANCES = {"smooth_l1": _smooth_l1, "l2": _l2, "cosine": _cosine}
