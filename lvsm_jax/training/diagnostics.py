"""Per-layer diagnostics: gradient norms, token RMS, attention entropy.

Letters: `b` scenes, `v` input views, `l` layers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.common.tree import named_leaves
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.efficient_lvsm import EfficientLVSM, rms

ByLayer = dict[str, Float[Array, "l"]]


def norms_by_layer(stacks: tuple[str, ...], tree: Any) -> ByLayer:
    """Norms of a tree of the model's shape, such as a gradient, by stack and layer.

    `stacks` are the names of the model's stacks of layers; a `last` in one is one layer more.
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
    """RMS of the tokens after each layer, and the entropy of the decoder's attention.

    See `LayerDiagnostics`. There is nothing of models without two streams.
    """
    if not isinstance(model, EfficientLVSM):
        return {}
    layers = range(1, model.config.num_layers + 1)
    memory, inputs = model.encode_with_features(images, input_cameras, layers)
    size = images.shape[2:4]
    _, decoder, _ = model.decode_tokens(memory, target_cameras, *size, diagnose=True)
    return {
        "encoder_rms": jnp.stack([rms(tokens) for tokens in inputs]),
        "decoder_rms": decoder.rms,
        "attention_entropy": decoder.entropy,
    }


def rows(values: Mapping[str, Float[Array, "l"]]) -> dict[str, float]:
    """One number for each layer, counted from 1, named so that logs group them by what they are."""
    return {
        f"{name}/layer_{layer:02d}": float(value)
        for name, by_layer in jax.device_get(dict(values)).items()
        for layer, value in enumerate(by_layer, start=1)
    }
