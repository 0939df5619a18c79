"""The two LVSM models (arXiv 2410.17242), the baselines of Efficient-LVSM.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view, `k` latent tokens,
`d` width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lvsm_jax.models.base import (
    ModelConfig,
    ViewSynthesisModel,
    check_camera_encoding,
    computation,
)
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.layers import LayerNorm, Transformer, broadcast_scenes
from lvsm_jax.models.prope import SequencePositions, view_positions
from lvsm_jax.parallel.mesh import axes_of, view_devices


@dataclasses.dataclass(frozen=True)
class LVSMDecoderOnlyConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published model.

    Attributes:
        camera_encoding: as in `EfficientLVSMConfig`, in the attention of the whole sequence; with
            principal points from the middle of the picture, as SSD-LVSM and PRoPE's program count.
        halves: as in `EfficientLVSMConfig`. Decoupled, it is SSD-LVSM (arXiv 2605.18599), where
            the rays of inputs and targets have one tokenizer.
        targets_at_once: targets of a scene that go through the layers together, each with a copy
            of the inputs' tokens; 0 for all. Fewer take less memory, but in training all are kept
            for the backward pass either way.
    """

    num_layers: int = 24
    camera_encoding: str = "plucker"
    halves: str = "joint"
    targets_at_once: int = computation(1)

    def __post_init__(self):
        super().__post_init__()
        check_camera_encoding(self)

    @property
    def pose_encoding(self) -> str:
        """How tokens encode their camera."""
        return self.camera_encoding

    @property
    def own_target_tokenizer(self) -> bool:
        """Whether the rays of targets have a tokenizer other than those of the inputs."""
        return self.halves == "joint"


@dataclasses.dataclass(frozen=True)
class LVSMEncoderDecoderConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published model.

    `num_layers` is the layers of the encoder and of the decoder each.

    Attributes:
        num_latents: latent tokens of a scene.
        halves: as in `LVSMDecoderOnlyConfig`, also of the latents.
        targets_at_once: targets of a scene that go through the decoder together, each with a copy
            of the latents; as in `LVSMDecoderOnlyConfig`.
    """

    num_latents: int = 3072
    halves: str = "joint"
    targets_at_once: int = computation(1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputTokens:
    """The input views before the first layer."""

    tokens: Any  # `[b, s, d]` of all views
    cameras: Cameras | None  # of the views; None where attention does not encode cameras

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tokens."""
        return self.tokens.shape


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

    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> InputTokens:
        """The tokens of the input views, before the first layer."""
        tokens = self.norm(all_tokens(self, images, cameras))
        kept = None
        if self.config.camera_encoding != "plucker":
            kept = jax.tree.map(jnp.asarray, cameras)
        return InputTokens(tokens, kept)

    def decode(
        self, memory: InputTokens, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""

        def layers(targets: Array, others: Array, cameras: Cameras) -> Float[Array, "b k n d"]:
            positions = self.positions(cameras, memory.cameras, height, width)
            return self.transformer(targets, others, positions)

        tokens = self.norm(self.target_tokens(cameras, height, width))
        tokens = _each_with(layers, tokens, memory.tokens, cameras, self.config.targets_at_once)
        return self.pixels(tokens, height, width)

    def positions(
        self, targets: Cameras, inputs: Cameras | None, height: int, width: int
    ) -> SequencePositions | None:
        """In the sequence of each target; None where attention does not encode cameras."""
        if inputs is None:
            return None
        encoding, views = self.config.camera_encoding, _sequences_of(targets, inputs)
        size = height, width, self.config.patch_size, self.config.head_dim
        positions = view_positions(encoding, views, *size, middle=0.5)
        return SequencePositions(positions, 1 + inputs.shape[1])


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

        def layers(targets: Array, others: Array, _: Cameras) -> Float[Array, "b k n d"]:
            return self.decoder(targets, others)

        tokens = _each_with(layers, tokens, memory, cameras, self.config.targets_at_once)
        return self.pixels(tokens, height, width)


def all_tokens(model: ViewSynthesisModel, images: Array, cameras: Cameras) -> Float[Array, "b s d"]:
    """The tokens of all input views; UserError if those of a scene are spread over devices."""
    if axes_of(images)[1] is not None:
        model.config.check_spread(view_devices())
    return einops.rearrange(model.input_tokens(images, cameras), "b v n d -> b (v n) d")


def _sequences_of(targets: Cameras, inputs: Cameras) -> Cameras:
    """Cameras `[b, k·(1 + v)]` of the sequence of each target: its own, then the inputs'."""

    def joined(target: Float[Array, "b k ..."], given: Float[Array, "b v ..."]) -> Array:
        shape = (*target.shape[:2], *given.shape[1:])
        each = jnp.concatenate(
            [target[:, :, None], jnp.broadcast_to(given[:, None], shape)], axis=2
        )
        return einops.rearrange(each, "b k v ... -> b (k v) ...")

    return jax.tree.map(joined, *jax.tree.map(jnp.asarray, (targets, inputs)))


def _each_with(
    layers: Callable[[Array, Array, Cameras], Array],
    targets: Float[Array, "b t n d"],
    memory: Float[Array, "b s d"],
    cameras: Cameras,
    at_once: int,
) -> Float[Array, "b t n d"]:
    """The targets' tokens after the layers, each target in a sequence with all of the memory."""
    t = targets.shape[1]

    def group(shown: tuple[Float[Array, "b k n d"], Cameras]) -> Float[Array, "b k n d"]:
        targets, cameras = shown
        shape = (*targets.shape[:2], *memory.shape[1:])
        return layers(targets, jnp.broadcast_to(memory[:, None], shape), cameras)

    shown = targets, jax.tree.map(jnp.asarray, cameras)
    if at_once == 0 or at_once >= t:
        return group(shown)
    # The memory is copied for the targets that are computed at once only.
    whole = t - t % at_once
    groups = jax.tree.map(
        lambda x: einops.rearrange(x[:, :whole], "b (r k) ... -> r b k ...", k=at_once), shown
    )
    done = einops.rearrange(jax.lax.map(group, groups), "r b k n d -> b (r k) n d")
    if whole == t:
        return done
    rest = jax.tree.map(lambda x: x[:, whole:], shown)
    return jnp.concatenate([done, group(rest)], axis=1)
