"""Latent cache of LVSM's encoder-decoder: tokens of all input views together, for any targets.

A view cannot be added to them, replaced or removed: all views are encoded again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.base import ViewSynthesisModel, check_images
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.lvsm import LVSMEncoderDecoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentCache:
    """The input views of some scenes as latent tokens `[b, k, d]`.

    `image_size` is height and width of the input views in pixels.
    """

    tokens: Any
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def batch(self) -> int:
        """Scenes."""
        return self.tokens.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the latents."""
        return self.tokens.nbytes


def latent_cache(
    model: ViewSynthesisModel, images: Array | np.ndarray, cameras: Cameras
) -> LatentCache:
    """Encodes views for `lvsm_jax.render`, without waiting for a device.

    Takes an LVSMEncoderDecoder, images `[b, v, h, w, 3]`, float in [0, 1], and cameras `[b, v]`;
    raises UserError for another model, or what does not go together.
    """
    _check_model(model)
    check_images(images, cameras, model.config.patch_size, read_device=False)
    if 0 in images.shape:
        raise UserError(f"images of shape {images.shape}: no views to encode")
    return LatentCache(_encode(model, jnp.asarray(images), cameras), tuple(images.shape[2:4]))


def check_latents_fit(model: ViewSynthesisModel, cache: LatentCache) -> None:
    """Raises UserError unless the latents can be of the model."""
    _check_model(model)
    _, latents, width = cache.tokens.shape
    config = model.config
    check_same(("latents", latents, config.num_latents), ("channels a token", width, config.width))


def check_same(*sizes: tuple[str, int, int]) -> None:
    """Raises UserError unless sizes of a cache, each with its name, are those of the model."""
    for name, ours, theirs in sizes:
        if ours != theirs:
            raise UserError(f"the cache has {ours} {name}, but the model {theirs}")


@jax.jit
def _encode(model: LVSMEncoderDecoder, images: Array, cameras: Cameras) -> Array:
    return model.encode(images, cameras)


def _check_model(model: Any) -> None:
    if not isinstance(model, LVSMEncoderDecoder):
        raise UserError(
            f"{type(model).__name__} has no latents of its input views; LVSMEncoderDecoder has"
        )
