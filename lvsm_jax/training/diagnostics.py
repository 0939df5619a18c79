"""What tells layer by layer whether training is stable: norms of gradients and tokens, entropies.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view, `l` layers.
"""

import functools
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.common.tree import named_leaves
from lvsm_jax.models.attention import attention_entropy
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.efficient_lvsm import Attend, DecoderBlock, EfficientLVSM

ByLayer = dict[str, Float[Array, "l"]]


def norms_by_layer(stacks: tuple[str, ...], tree: Any) -> ByLayer:
    """The length of a tree of the model's shape, such as a gradient, layer by layer.

    Args:
        stacks: names of the parts that are layers stacked first; where a part has a `last`, that is
            one layer more.
        tree: arrays of the model.

    Returns:
        By the name of the stack.
    """
    leaves = named_leaves(tree)

    def norm(stack: str) -> Array:
        layers = []
        for last in (False, True):
            squares = [
                jnp.square(x.astype(jnp.float32)).sum(range(1 - last, x.ndim))
                for name, x in leaves.items()
                if name.startswith(f"{stack}.") and name.startswith(f"{stack}.last.") == last
            ]
            layers += [jnp.atleast_1d(sum(squares))] if squares else []
        return jnp.sqrt(jnp.concatenate(layers))

    return {stack: norm(stack) for stack in stacks}


@jax.jit
def token_statistics(
    model: ViewSynthesisModel,
    images: Float[Array, "b v h w 3"],
    input_cameras: Cameras,
    target_cameras: Cameras,
) -> ByLayer:
    """Of some scenes as the model sees them; nothing for models without two streams.

    Returns:
        `encoder_rms` and `decoder_rms`: root mean square of the tokens after each layer;
        `attention_entropy`: of the decoder's cross-attention, the mean over all queries and heads,
        as a share of the largest it can be (1 looks at all tokens of all inputs alike).
    """
    if not isinstance(model, EfficientLVSM):
        return {}
    layers = range(1, model.config.num_layers + 1)
    height, width = images.shape[2:4]
    memory, inputs = model.encode_with_features(images, input_cameras, layers)
    positions = model.positions(target_cameras, height, width)

    def layer(targets: Array, xs: tuple) -> tuple[Array, tuple[Array, Array]]:
        block, encoder, views = xs
        views = memory.tokens[0] if views is None else views
        attends, entropies = _watched(model, block, views, memory.positions)
        targets = block(targets, attends, encoder, positions)
        return targets, (_rms(targets), jnp.stack(entropies).mean())

    xs = (
        model.decoder,
        model.encoder if model.config.shared_streams else None,
        memory.tokens if model.config.co_refinement else None,
    )
    tokens = model.target_tokens(target_cameras, height, width)
    _, (rms, entropy) = jax.lax.scan(layer, tokens, xs)
    encoder_rms = jnp.stack([_rms(tokens) for tokens in inputs])
    return {"encoder_rms": encoder_rms, "decoder_rms": rms, "attention_entropy": entropy}


def rows(values: Mapping[str, Float[Array, "l"]]) -> dict[str, float]:
    """One number for each layer, counted from 1, under names that logs group by what it is."""
    return {
        f"{name}/layer_{layer:02d}": float(value)
        for name, by_layer in jax.device_get(dict(values)).items()
        for layer, value in enumerate(by_layer, start=1)
    }


def _watched(
    model: EfficientLVSM, block: DecoderBlock, views: Array, positions: Any
) -> tuple[tuple[Attend, ...], list[Array]]:
    """How a layer reads the inputs, and a list that its entropies are put in when it does."""
    entropies: list[Array] = []

    def watching(q: Array, pair: tuple[Array, Array]) -> Array:
        keys = einops.rearrange(pair[0], "b v s m c -> b (v s) m c")
        entropies.append(attention_entropy(q, keys).mean() / jnp.log(keys.shape[1]))
        return model.attend(q, pair)

    pairs = block.keys_values(views, positions)
    some = (functools.partial(watching, pair=pair) for pair in pairs)
    return tuple(model.sharpened(attend, *views.shape[1:3]) for attend in some), entropies


def _rms(tokens: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.square(tokens.astype(jnp.float32)).mean())
