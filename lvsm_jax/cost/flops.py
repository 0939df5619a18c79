"""How much arithmetic a model does, counted from its sizes.

A multiply-accumulate is two FLOPs. Linear layers and attention only: norms, softmax and GELU are
below one per cent at the published size. The stages are those of the published mathematics, with
each input view tokenised once; what this implementation leaves out of it is a stage of its own,
with negative counts.
"""

import dataclasses
from collections.abc import Callable

from lvsm_jax.common.errors import UserError
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.dino import DinoConfig
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.models.lvsm import LVSMDecoderOnlyConfig, LVSMEncoderDecoderConfig


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates.

    Attributes:
        linear: of linear layers.
        attention: of `q·kᵀ` and of the weighted sum of values.
    """

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both kinds together."""
        return self.linear + self.attention

    @property
    def flops(self) -> int:
        """FLOPs: two for each multiply-accumulate."""
        return 2 * self.total

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __sub__(self, other: "Macs") -> "Macs":
        return self + -1 * other

    def __rmul__(self, times: int) -> "Macs":
        return Macs(times * self.linear, times * self.attention)


def forward_macs(config: ModelConfig, *, views: int, targets: int, height: int, width: int) -> Macs:
    """Counts a forward pass of one scene: the sum of its `stages`."""
    counts = stages(config, views=views, targets=targets, height=height, width=width)
    return sum(counts.values(), Macs())


def training_flops(forward: Macs) -> int:
    """FLOPs of forward and backward pass: the backward takes twice the forward's.

    What `remat` computes again does not count: it is a cost, not work done.
    """
    return 3 * forward.flops


def teacher_macs(config: DinoConfig, *, height: int, width: int, blocks: int) -> Macs:
    """Counts a frozen teacher's pass over one image, which no backward pass follows.

    Args:
        config: of the teacher.
        height: of the image as the teacher sees it, in pixels, see `DinoConfig.input_size`.
        width: the same.
        blocks: how many of its blocks are computed, from the first.

    Raises:
        ValueError: a size that is not a multiple of the patch.
    """
    patches = _patches(height, width, config.patch_size)
    tokens = config.num_special + patches
    block = _attend(config, tokens, tokens) + _mlp(config, tokens)
    return Macs(patches * 3 * config.patch_size**2 * config.width) + blocks * block


def vgg_macs(plan: vgg.Plan, *, height: int, width: int) -> Macs:
    """Counts the convolutions of a VGG network over one image of this size in pixels."""
    count, inputs = 0, 3
    for block, channels in enumerate(plan):
        pixels = (height >> block) * (width >> block)
        for outputs in channels:
            count += pixels * 9 * inputs * outputs
            inputs = outputs
    return Macs(count)


def stages(
    config: ModelConfig, *, views: int, targets: int, height: int, width: int
) -> dict[str, Macs]:
    """Counts a forward pass of one scene by what it is spent on.

    Args:
        config: of the model.
        views: input views.
        targets: target views.
        height: of all views, in pixels.
        width: of all views, in pixels.

    Raises:
        ValueError: a size that is not a multiple of the patch.
    """
    tokens = _patches(height, width, config.patch_size)
    pixels, poses = config.width * config.patch_size**2, config.pose_channels
    return {
        "input tokens": Macs(views * tokens * (3 + poses) * pixels),
        "target tokens": Macs(targets * tokens * poses * pixels),
        **_LAYERS[type(config)](config, views, targets, tokens),
        "head": Macs(targets * tokens * 3 * pixels),
    }


def _efficient_lvsm(
    config: EfficientLVSMConfig, views: int, targets: int, tokens: int
) -> dict[str, Macs]:
    inputs, rendered, layers = views * tokens, targets * tokens, config.num_layers
    to_inputs = _queries_and_output(config, rendered) + _scores(config, rendered, inputs)
    reads = config.num_cross_attentions
    inside = {"decoder: self-attention of each target": layers * _attend(config, rendered, tokens)}
    if config.decoder_attention == "cross":
        inside = {}
    return {
        "encoder: self-attention of each input": layers * _attend(config, inputs, tokens),
        "encoder: MLP": layers * _mlp(config, inputs),
        "inputs' keys and values for the decoder": layers
        * reads
        * _keys_and_values(config, inputs),
        **inside,
        "decoder: cross-attention to the inputs": layers * reads * to_inputs,
        "decoder: MLP": layers * _mlp(config, rendered),
    }


def _decoder_only(
    config: LVSMDecoderOnlyConfig, views: int, targets: int, tokens: int
) -> dict[str, Macs]:
    inputs = views * tokens
    blocks, unread = _sequences(config, targets, tokens, inputs)
    return {
        "layers over all inputs and one target": blocks,
        "last layer: rows nobody reads, left out": unread,
    }


def _encoder_decoder(
    config: LVSMEncoderDecoderConfig, views: int, targets: int, tokens: int
) -> dict[str, Macs]:
    latents, inputs = config.num_latents, views * tokens
    encoder, unread_inputs = _sequences(config, 1, latents, inputs)
    decoder, unread_latents = _sequences(config, targets, tokens, latents)
    return {
        "encoder: layers over latents and inputs": encoder,
        "encoder's last layer: rows nobody reads, left out": unread_inputs,
        "decoder: layers over latents and one target": decoder,
        "decoder's last layer: rows nobody reads, left out": unread_latents,
    }


_LAYERS: dict[type[ModelConfig], Callable[..., dict[str, Macs]]] = {
    EfficientLVSMConfig: _efficient_lvsm,
    LVSMDecoderOnlyConfig: _decoder_only,
    LVSMEncoderDecoderConfig: _encoder_decoder,
}


def _patches(height: int, width: int, patch: int) -> int:
    if height % patch or width % patch:
        raise UserError(f"{height}×{width} pixels are no multiples of the patch size {patch}")
    return height * width // patch**2


def _sequences(config: ModelConfig, count: int, wanted: int, others: int) -> tuple[Macs, Macs]:
    """`count` sequences through all layers, and (negative) what only the others need of the last.

    Of the tokens that are not wanted, `models.layers.Transformer` takes but keys and values.
    """
    length = wanted + others
    layer = _attend(config, length, length) + _mlp(config, length)
    unread = (
        _queries_and_output(config, others) + _scores(config, others, length) + _mlp(config, others)
    )
    return count * config.num_layers * layer, -count * unread


def _attend(config: ModelConfig | DinoConfig, tokens: int, seen: int) -> Macs:
    """Self-attention where each of the tokens sees `seen` of them."""
    maps = _queries_and_output(config, tokens) + _keys_and_values(config, tokens)
    return maps + _scores(config, tokens, seen)


def _queries_and_output(config: ModelConfig | DinoConfig, tokens: int) -> Macs:
    return Macs(tokens * 2 * config.width**2)


def _keys_and_values(config: ModelConfig | DinoConfig, tokens: int) -> Macs:
    return Macs(tokens * 2 * config.width**2)


def _scores(config: ModelConfig | DinoConfig, queries: int, keys: int) -> Macs:
    return Macs(attention=2 * config.width * queries * keys)


def _mlp(config: ModelConfig | DinoConfig, tokens: int) -> Macs:
    return Macs(tokens * 2 * config.mlp_ratio * config.width**2)
