"""The two LVSM models (arXiv 2410.17242), the baselines of Efficient-LVSM.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view, `k` latent tokens,
`d` width.
"""

import dataclasses
from typing import ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel, computation
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.layers import LayerNorm, Transformer, broadcast_scenes
from lvsm_jax.parallel.mesh import axes_of, view_devices


@dataclasses.dataclass(frozen=True)
class LVSMDecoderOnlyConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published model.

    Attributes:
        targets_at_once: targets of a scene that go through the layers together, each with a copy
            of the inputs' tokens; 0 for all. Fewer take less memory, but in training all are kept
            for the backward pass either way.
    """

    num_layers: int = 24
    targets_at_once: int = computation(1)


@dataclasses.dataclass(frozen=True)
class LVSMEncoderDecoderConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published model.

    `num_layers` is the layers of the encoder and of the decoder each.

    Attributes:
        num_latents: latent tokens of a scene.
        targets_at_once: targets of a scene that go through the decoder together, each with a copy
            of the latents; as in `LVSMDecoderOnlyConfig`.
    """

    num_latents: int = 3072
    targets_at_once: int = computation(1)


class LVSMDecoderOnly(ViewSynthesisModel):
    """One sequence for each target: the tokens of all input views and of that target.

    All attend to all, so nothing of the inputs beyond their tokens can be kept for another target.
    """

    config: LVSMDecoderOnlyConfig
    stacks: ClassVar[tuple[str, ...]] = ("transformer",)

    def __init__(self, config: LVSMDecoderOnlyConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.norm = LayerNorm(config.width, scale=True)
        self.transformer = Transformer(config, config.num_layers, rngs=rngs)
        self.head_norm, self.head = self.make_head(scale=True, rngs=rngs)

    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Float[Array, "b s d"]:
        """The tokens of the input views, before the first layer."""
        return self.norm(all_tokens(self, images, cameras))

    def decode(
        self, memory: Float[Array, "b s d"], cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""
        tokens = self.norm(self.target_tokens(cameras, height, width))
        tokens = _each_with(self.transformer, tokens, memory, self.config.targets_at_once)
        return self.pixels(tokens, height, width)


class LVSMEncoderDecoder(ViewSynthesisModel):
    """The encoder reads all input views into latent tokens; each target is decoded with them."""

    config: LVSMEncoderDecoderConfig
    stacks: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def __init__(self, config: LVSMEncoderDecoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        shape = (config.num_latents, config.width)
        self.latents = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, jnp.float32))
        self.encoder = Transformer(config, config.num_layers, rngs=rngs)
        self.decoder_norm = LayerNorm(config.width, scale=True)
        self.decoder = Transformer(config, config.num_layers, rngs=rngs)
        self.head_norm, self.head = self.make_head(scale=True, rngs=rngs)

    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Float[Array, "b k d"]:
        """The latent tokens after the encoder: of one size, however many views there are."""
        tokens = all_tokens(self, images, cameras)
        # Cast after it: the gradient sums over the scenes, in float32.
        latents = broadcast_scenes(self.latents[...], tokens).astype(tokens.dtype)
        return self.encoder(latents, tokens)

    def decode(
        self, memory: Float[Array, "b k d"], cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""
        tokens = self.decoder_norm(self.target_tokens(cameras, height, width))
        memory = self.decoder_norm(memory)
        tokens = _each_with(self.decoder, tokens, memory, self.config.targets_at_once)
        return self.pixels(tokens, height, width)


def all_tokens(model: ViewSynthesisModel, images: Array, cameras: Cameras) -> Float[Array, "b s d"]:
    """The tokens of all input views; UserError if those of a scene are spread over devices."""
    if axes_of(images)[1] is not None:
        model.config.check_spread(view_devices())
    return einops.rearrange(model.input_tokens(images, cameras), "b v n d -> b (v n) d")


def _each_with(
    transformer: Transformer,
    targets: Float[Array, "b t n d"],
    memory: Float[Array, "b s d"],
    at_once: int,
) -> Float[Array, "b t n d"]:
    """The targets' tokens after the layers, each target in a sequence with all of the memory."""
    t = targets.shape[1]

    def group(targets: Float[Array, "b k n d"]) -> Float[Array, "b k n d"]:
        shape = (*targets.shape[:2], *memory.shape[1:])
        return transformer(targets, jnp.broadcast_to(memory[:, None], shape))

    if at_once == 0 or at_once >= t:
        return group(targets)
    # The memory is copied for the targets that are computed at once only.
    whole = t - t % at_once
    groups = einops.rearrange(targets[:, :whole], "b (r k) n d -> r b k n d", k=at_once)
    done = einops.rearrange(jax.lax.map(group, groups), "r b k n d -> b (r k) n d")
    if whole == t:
        return done
    return jnp.concatenate([done, group(targets[:, whole:])], axis=1)
