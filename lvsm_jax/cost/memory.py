"""Parameters of a model, and bytes of weights, caches and activations.

All is read off shapes (`jax.eval_shape`): no weight is made. Bytes are of one scene.
"""

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lvsm_jax.common.tree import named_leaves
from lvsm_jax.gaussians import rasterize
from lvsm_jax.models.architectures import abstract_model
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.models.gs_lrm import GSLRMConfig
from lvsm_jax.training.train_state import TrainingConfig, new_state

# In the order in which the images pass through them.
_PARTS = ("input_tokenizer", "latents", "encoder", "target_tokenizer", "norm", "transformer")
_PARTS += ("decoder_norm", "decoder", "head_norm", "head", "copy_head")


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Bytes of one scene, and of one more view in it."""

    scene: int
    input_view: int
    target_view: int


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, the first word of their names, from the images to the renders."""
    parts: dict[str, int] = collections.Counter()
    for name, leaf in named_leaves(abstract_model(config)).items():
        parts[name.split(".")[0]] += leaf.size
    return dict(sorted(parts.items(), key=lambda part: _PARTS.index(part[0])))


def training_state_bytes(config: TrainingConfig) -> dict[str, int]:
    """Bytes of one copy of what training holds beside activations, however it is sharded."""
    state = jax.eval_shape(lambda: new_state(config, 0))
    weights = _bytes((state.model, state.projectors))
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": _bytes(state.opt_state),
        "averaged_weights": _bytes(state.ema),
    }


def kv_cache_bytes(config: ModelConfig, *, height: int, width: int) -> int | None:
    """Bytes of the keys and values of one input view that all targets read; None without any.

    What a head that copies reads is among them.
    LVSM models have none: the inputs' tokens, or the latents, attend to each target too.
    """
    if not isinstance(config, EfficientLVSMConfig):
        return None
    tokens = height * width // config.patch_size**2
    numbers = 2 * config.num_cross_attentions * config.num_layers * tokens * config.width
    kept = jax.eval_shape(
        lambda model, *views: model.encode(*views).copied,
        abstract_model(config),
        *abstract_views(1, 1, height, width, timed=config.time_channel),
    )
    return numbers * jnp.dtype(config.dtype).itemsize + _bytes(kept)


def rasterizer_bytes(config: ModelConfig, *, views: int, height: int, width: int) -> int | None:
    """Bytes with which a target view is rasterised from that many input views; None without."""
    if not isinstance(config, GSLRMConfig):
        return None
    gaussians = views * height * width
    return rasterize.rasterizer_bytes(
        gaussians,
        height=height,
        width=width,
        capacity=rasterize.capacity_for(gaussians, config.pairs_per_gaussian),
        tile=config.tile_size,
    )


def rasterizer_chunks(config: ModelConfig, *, views: int, height: int, width: int) -> int | None:
    """Turns of the rasteriser's loops where all its room is used, on the mesh; None without any."""
    if not isinstance(config, GSLRMConfig):
        return None
    capacity = rasterize.capacity_for(views * height * width, config.pairs_per_gaussian)
    tiles = -(-height // config.tile_size) * -(-width // config.tile_size)
    return rasterize.most_chunks(capacity, tiles, config.tile_size)


def encoded_bytes(config: ModelConfig, *, views: int, height: int, width: int) -> Bytes:
    """Bytes of what `encode` returns."""
    model = abstract_model(config)

    def of(views: int) -> int:
        inputs = abstract_views(1, views, height, width, timed=config.time_channel)
        return _bytes(jax.eval_shape(lambda model, *inputs: model.encode(*inputs), model, *inputs))

    return Bytes(of(views), of(views + 1) - of(views), 0)


def activation_bytes(
    config: ModelConfig, *, views: int, targets: int, height: int, width: int
) -> Bytes:
    """Bytes that a forward pass keeps for the backward pass, in training.

    They are the residuals of `jax.vjp`: exact for what is stacked over layers, an upper bound for
    the rest. Neither the loss nor what the backward pass makes is among them. `countable` says
    with which attention kernel they are counted.
    """
    model = abstract_model(countable(config, height=height, width=width))

    def residuals(model: Any, *views: Any) -> Any:
        return jax.vjp(lambda model: model(*views), model)[1]

    def of(scenes: int, views: int, targets: int) -> int:
        inputs = abstract_views(scenes, views, height, width, timed=config.time_channel)
        _, rendered = abstract_views(scenes, targets, height, width, timed=config.time_channel)
        return _bytes(jax.eval_shape(residuals, model, *inputs, rendered))

    # Weights are among the residuals; they are the same in every difference.
    one = of(1, views, targets)
    return Bytes(
        scene=of(2, views, targets) - one,
        input_view=of(1, views + 1, targets) - one,
        target_view=of(1, views, targets + 1) - one,
    )


def countable(config: ModelConfig, *, height: int, width: int) -> ModelConfig:
    """The configuration that activations are counted with, the same on every machine.

    `auto` and `cudnn` become `splash`, which can be traced anywhere and keeps what they keep:
    queries, keys, values, outputs and one number a row; or `xla`, where it cannot take the number
    of tokens. All targets go through the layers at once, which keeps as much as one by one.
    """
    changes: dict[str, Any] = {}
    if config.attention in ("auto", "cudnn"):
        tokens = height * width // config.patch_size**2
        fused = math.gcd(tokens, getattr(config, "num_latents", 0)) % 128 == 0
        changes["attention"] = "splash" if fused else "xla"
    if hasattr(config, "targets_at_once"):
        changes["targets_at_once"] = 0
    return dataclasses.replace(config, **changes)


def abstract_views(
    scenes: int, views: int, height: int, width: int, *, timed: bool = False
) -> tuple[jax.ShapeDtypeStruct, Cameras]:
    """Shapes of images and cameras, in float32; `timed` for a model that takes times."""

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((scenes, views, *sizes), jnp.float32)

    time = shape() if timed else None
    return shape(height, width, 3), Cameras(shape(4, 4), shape(4), time)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
