"""FLOPs of a model, counted from its sizes.

A multiply-accumulate is two FLOPs. Only linear layers and attention count: norms, softmax and GELU
are below one per cent at the published size. The stages are those of the published mathematics,
with each input view tokenised once. What this implementation leaves out of it is a stage of its
own, with negative counts.
"""

import dataclasses

from lvsm_jax.common.errors import UserError
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.dino import DinoConfig
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.models.copy_head import CHANNELS, TAPS
from lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.models.gs_lrm import CHANNELS as GAUSSIAN_CHANNELS
from lvsm_jax.models.gs_lrm import GSLRMConfig
from lvsm_jax.models.lvsm import LVSMDecoderOnlyConfig, LVSMEncoderDecoderConfig


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates."""

    linear: int = 0  # of linear layers
    attention: int = 0  # of `q·kᵀ` and of the weighted sum of values

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
    """Multiply-accumulates of one scene's forward pass: the sum of its `stages`."""
    counts = stages(config, views=views, targets=targets, height=height, width=width)
    return sum(counts.values(), Macs())


def training_flops(forward: Macs) -> int:
    """FLOPs of a forward and a backward pass, which takes twice the forward's.

    What `remat` recomputes does not count: it is a cost, not work done.
    """
    return 3 * forward.flops


def teacher_macs(config: DinoConfig, *, height: int, width: int, blocks: int) -> Macs:
    """Multiply-accumulates of a frozen teacher's first `blocks` blocks over one image.

    Height and width are those that the teacher sees, in pixels: `DinoConfig.input_size`.
    """
    patches = _patches(height, width, config.patch_size)
    tokens = config.num_special + patches
    block = _self_attention(config, tokens, tokens) + _mlp(config, tokens)
    return Macs(patches * 3 * config.patch_size**2 * config.width) + blocks * block


def vgg_macs(plan: vgg.Plan, *, height: int, width: int) -> Macs:
    """Multiply-accumulates of a VGG network's convolutions over one image of this size in px."""
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
    """Multiply-accumulates of one scene's forward pass by what they are spent on.

    `views` are the input views; all views have one height and width, in pixels: multiples of the
    patch, else UserError.
    """
    tokens = _patches(height, width, config.patch_size)
    pixels, poses = config.width * config.patch_size**2, config.pose_channels
    # Colours and rays each make a half of a token, where halves are decoupled.
    tokenized = pixels if config.halves == "joint" else pixels // 2
    if isinstance(config, GSLRMConfig):  # targets pass through no layer; rasterising is no matmul
        inputs = views * tokens
        layer = _self_attention(config, inputs, inputs) + _mlp(config, inputs)
        return {
            "input tokens": Macs(inputs * (3 + poses) * pixels),
            "layers over all inputs": config.num_layers * layer,
            "head: Gaussians of the inputs' pixels": Macs(inputs * GAUSSIAN_CHANNELS * pixels),
        }
    return {
        "input tokens": Macs(views * tokens * (3 + poses) * tokenized),
        "target tokens": Macs(targets * tokens * poses * tokenized),
        **_layers(config, views, targets, tokens),
        "head": Macs(targets * tokens * 3 * pixels),
        **_copies(config, views, targets, tokens),
    }


def _layers(config: ModelConfig, views: int, targets: int, tokens: int) -> dict[str, Macs]:
    inputs, rendered = views * tokens, targets * tokens
    match config:
        case EfficientLVSMConfig():
            reads = config.num_cross_attentions
            cross = _two_projections(config, rendered) + _scores(config, rendered, inputs)
            layer = {
                "encoder: self-attention of each input": _self_attention(config, inputs, tokens),
                "encoder: MLP": _mlp(config, inputs),
                "inputs' keys and values for the decoder": reads * _two_projections(config, inputs),
                "decoder: self-attention of each target": _self_attention(config, rendered, tokens),
                "decoder: cross-attention to the inputs": reads * cross,
                "decoder: MLP": _mlp(config, rendered),
            }
            if config.halves == "decoupled_film":
                layer["encoder: modulation of halves"] = _film(config, inputs)
                layer["decoder: modulation of halves"] = _film(config, rendered)
            if config.decoder_attention == "cross":
                del layer["decoder: self-attention of each target"]
            return {name: config.num_layers * macs for name, macs in layer.items()}
        case LVSMDecoderOnlyConfig():
            blocks, unread = _sequences(config, targets, tokens, inputs)
            return {
                "layers over all inputs and one target": blocks,
                "last layer: rows nobody reads, left out": unread,
            }
        case LVSMEncoderDecoderConfig(num_latents=latents):
            encoder, unread_inputs = _sequences(config, 1, latents, inputs)
            decoder, unread_latents = _sequences(config, targets, tokens, latents)
            return {
                "encoder: layers over latents and inputs": encoder,
                "encoder's last layer: rows nobody reads, left out": unread_inputs,
                "decoder: layers over latents and one target": decoder,
                "decoder's last layer: rows nobody reads, left out": unread_latents,
            }
    raise UserError(
        f"{type(config).__name__}: multiply-accumulates are known of the models of lvsm_jax alone"
    )


def _copies(config: ModelConfig, views: int, targets: int, tokens: int) -> dict[str, Macs]:
    """Of the head that copies; fetching colours is no multiply-accumulate of a matmul."""
    if not getattr(config, "copy_head", False):
        return {}
    inputs, rendered, pixels = views * tokens, targets * tokens, config.patch_size**2
    own = TAPS * CHANNELS + (3 * TAPS + 1) * pixels
    return {
        "copies: keys and values of the inputs": Macs(
            inputs * config.width * TAPS * (2 * CHANNELS - 2)
        ),
        "copies: queries and pixels of the targets": Macs(rendered * config.width * own),
        "copies: places in each input": Macs(
            rendered * views * TAPS * CHANNELS * 3 * pixels,
            rendered * inputs * TAPS * 2 * CHANNELS,
        ),
    }


def _patches(height: int, width: int, patch: int) -> int:
    if height % patch or width % patch:
        raise UserError(f"{height}×{width} pixels are no multiples of the patch size {patch}")
    return height * width // patch**2


def _sequences(config: ModelConfig, count: int, wanted: int, others: int) -> tuple[Macs, Macs]:
    """`count` sequences through all layers; and, negative, what the last layer leaves out.

    In it `models.layers.Transformer` computes but keys and values of the tokens not wanted.
    """
    length = wanted + others
    after = _mlp(config, length) + _film(config, length)
    layer = _self_attention(config, length, length) + after
    unread = _two_projections(config, others) + _scores(config, others, length)
    unread += _mlp(config, others) + _film(config, others)
    return count * config.num_layers * layer, -count * unread


def _self_attention(config: ModelConfig | DinoConfig, tokens: int, seen: int) -> Macs:
    """Self-attention where each of the tokens sees `seen` of them."""
    return 2 * _two_projections(config, tokens) + _scores(config, tokens, seen)


def _two_projections(config: ModelConfig | DinoConfig, tokens: int) -> Macs:
    """Queries and output, or keys and values; of these the latter are of each half apart."""
    square = config.width**2
    return Macs(tokens * (square + _apart(config, square)))


def _scores(config: ModelConfig | DinoConfig, queries: int, keys: int) -> Macs:
    return Macs(attention=2 * config.width * queries * keys)


def _mlp(config: ModelConfig | DinoConfig, tokens: int) -> Macs:
    return Macs(tokens * _apart(config, 2 * config.mlp_ratio * config.width**2))


def _film(config: ModelConfig, tokens: int) -> Macs:
    """Of halves that modulate each other; none else."""
    return Macs(tokens * config.width**2 if config.halves == "decoupled_film" else 0)


def _apart(config: ModelConfig | DinoConfig, weights: int) -> int:
    """So many weights of all channels, or half as many where the halves have their own."""
    return weights if getattr(config, "halves", "joint") == "joint" else weights // 2
