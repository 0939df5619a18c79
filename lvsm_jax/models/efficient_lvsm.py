"""Efficient-LVSM (arXiv 2602.06478): an encoder stream and a decoder stream, layer by layer.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view (`s` of an input view,
where targets have another size), `d` width, `l` layers, `m` heads, `c` head size.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lvsm_jax.common.checks import check_choice
from lvsm_jax.common.errors import UserError
from lvsm_jax.models import layers
from lvsm_jax.models.base import (
    ModelConfig,
    ViewSynthesisModel,
    check_camera_encoding,
    check_images,
    computation,
)
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.copy_head import CopyHead, CopySource
from lvsm_jax.models.halves import each_half
from lvsm_jax.models.layers import Attention, DenseKV, TransformerBlock
from lvsm_jax.models.prope import Positions, view_positions

DECODER_ATTENTION = ("self_cross", "cross")
CACHE_DTYPES = ("float32", "bfloat16", "int8")
ATTENTION_TEMPERATURES = ("constant", "log_views")


@dataclasses.dataclass(frozen=True)
class EfficientLVSMConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published model.

    `num_layers` is the layers of each stream. The first three fields are the paper's ablations;
    `camera_encoding`, `attention_temperature`, `copy_head` and `halves` go beyond it.

    Attributes:
        co_refinement: the decoder's layer l reads the encoder's tokens after its layer l; if
            False, every layer reads those after the encoder's last.
        decoder_attention: the attentions of a decoder layer. `self_cross`: inside the target view,
            then to the inputs; `cross`: twice to the inputs, so that a layer has as many
            attentions and weights (6 + 6 attention layers against 12) and a target's tokens never
            see each other. The latter keeps twice as many keys and values of an input view.
        shared_streams: the decoder's self-attention, MLP and modulation of halves are the
            encoder's of the same layer; its cross-attention is its own. Needs `self_cross`.
        camera_encoding: how cameras are encoded. `plucker`: by rays in the tokens, as published;
            `prope`: by relative projections in the decoder's cross-attention, with RoPE inside each
            view (`models.prope`), and by rays in the camera's own axes, which do not depend on its
            pose, in the tokens; `gta`: the same with relative poses alone in attention;
            `plucker_prope`: world rays in the tokens, and attention as in `prope`. With `prope` and
            `gta` no render depends on the world frame, only on its unit of length.
        attention_temperature: of the decoder's cross-attention. `constant`, as published;
            `log_views`: logits are multiplied by log(keys of all input views) / log(keys of two),
            so that attention does not flatten as views are added.
        copy_head: mix the regressed colours with such that are copied from the input views
            (`models.copy_head`).
        halves: `decoupled` keeps colours and rays of a token in halves of their own, which share
            queries and keys alone (`models.halves`); `decoupled_film` lets each modulate the other;
            `joint`, as published, does neither.
        cache_dtype: of the keys and values in a `ViewCache`: `float32`, `bfloat16`
            or `int8` (with a float32 scale for each token and head); empty for `dtype`.
    """

    spreads_views: ClassVar[bool] = True

    co_refinement: bool = True
    decoder_attention: str = "self_cross"
    shared_streams: bool = False
    camera_encoding: str = "plucker"
    attention_temperature: str = "constant"
    copy_head: bool = False
    halves: str = "joint"
    cache_dtype: str = computation("")

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("decoder_attention", DECODER_ATTENTION),
            ("attention_temperature", ATTENTION_TEMPERATURES),
            ("cache_dtype", ("", *CACHE_DTYPES)),
        ):
            check_choice(f"model.{name}", getattr(self, name), choices)
        check_camera_encoding(self)
        if self.shared_streams and self.decoder_attention != "self_cross":
            raise UserError(
                "model.shared_streams shares self-attention, which a decoder with "
                f"model.decoder_attention={self.decoder_attention!r} does not have"
            )

    @property
    def pose_encoding(self) -> str:
        """How tokens encode their camera."""
        return self.camera_encoding

    @property
    def num_cross_attentions(self) -> int:
        """Cross-attentions of a decoder layer, each with keys and values of its own."""
        return 2 if self.decoder_attention == "cross" else 1


@runtime_checkable
class InputViews(Protocol):
    """What the decoder reads of the input views: a `Memory`, or a cache."""

    size: tuple[Any, int]  # number of views, of all scenes or `[b]`, and of tokens a view
    by_layer: Any  # pytree with the layers first, of which each layer gets its own
    copied: Any  # `CopySource`, None without a head that copies

    def keys_values(self, block: "DecoderBlock", own: Any) -> tuple[Any, ...]:
        """What each cross-attention of a layer reads, by its method `attend(q)`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The input views after the encoder."""

    tokens: Any  # `[l, b, v, s, d]` after each layer; without co-refinement, after the last alone
    positions: Positions | None  # of the views; None where attention does not encode cameras
    copied: CopySource | None = None  # what a head that copies reads

    @property
    def size(self) -> tuple[int, int]:
        """Number of views, and of tokens a view."""
        return self.tokens.shape[2:4]

    @property
    def by_layer(self) -> Float[Array, "l b v s d"] | None:
        """The tokens that each layer of the decoder reads; None where all read the same."""
        return self.tokens if len(self.tokens) > 1 else None

    def keys_values(self, block: "DecoderBlock", own: Array | None) -> tuple[DenseKV, ...]:
        """Keys and values that this layer reads, all views' in one sequence."""
        return tuple(kv.joined for kv in self.keys_values_by_view(block, own))

    def keys_values_by_view(self, block: "DecoderBlock", own: Array | None) -> tuple[DenseKV, ...]:
        """The same `[b, v, s, m, c]`: those of a view depend on that view alone."""
        return block.keys_values(self.tokens[0] if own is None else own, self.positions)


class LayerDiagnostics(NamedTuple):
    """Of a layer of the decoder: RMS of the tokens after it, and entropy of its cross-attention.

    The entropy is the mean over all queries and heads, as a share of the largest it can be (1: all
    tokens of all inputs count alike).
    """

    rms: Any
    entropy: Any


class DecoderBlock(nnx.Module):
    """Self-attention inside each target view, cross-attention to the inputs, then an MLP.

    Halves that modulate each other do so before the MLP.

    With `decoder_attention="cross"` another cross-attention takes the place of self-attention. With
    `shared_streams` self-attention and MLP are the encoder's, and None here.
    """

    def __init__(self, config: EfficientLVSMConfig, index: Array, *, rngs: nnx.Rngs):
        init, own = layers.residual_init(index), not config.shared_streams

        def attention() -> Attention:
            return Attention(config, init=init, rngs=rngs)

        self.has_self_attention = config.decoder_attention == "self_cross"
        self.branch_scale = config.branch_scale
        self.norm = each_half(config, lambda width: layers.LayerNorm(width, scale=False))
        self.self_attention = attention() if self.has_self_attention and own else None
        self.first_cross_attention = None if self.has_self_attention else attention()
        self.cross_attention = attention()
        self.mlp = layers.make_mlp(config, init=init, rngs=rngs) if own else None
        self.film = layers.make_film(config, rngs=rngs) if own else None

    @property
    def cross_attentions(self) -> tuple[Attention, ...]:
        """In their order."""
        if self.has_self_attention:
            return (self.cross_attention,)
        return self.first_cross_attention, self.cross_attention

    def keys_values(
        self, views: Float[Array, "b v s d"], positions: Positions | None = None
    ) -> tuple[DenseKV, ...]:
        """What each cross-attention reads of the input views; each view's is its own."""
        views = self.norm(views)
        return tuple(attention.keys_values(views, positions) for attention in self.cross_attentions)

    def __call__(
        self,
        targets: Float[Array, "b t n d"],
        inputs: tuple[Any, ...],
        positions: Positions | None = None,
        temperature: Float[Array, "#b"] | None = None,
        encoder: TransformerBlock | None = None,
        diagnose: bool = False,
    ) -> tuple[Float[Array, "b t n d"], LayerDiagnostics | None]:
        """One layer; targets do not attend to each other.

        `inputs` is what `InputViews.keys_values` returns, `positions` are those of the targets,
        where attention encodes cameras, `temperature` is a factor of the logits of cross-attention
        (None is 1), and `encoder` the encoder's block, where the streams share weights.
        """
        shared = self if encoder is None else encoder
        if self.has_self_attention:
            normed, inside = self.norm(targets), None if positions is None else positions.inside
            branch = shared.self_attention(normed, normed, inside)
            targets = targets + self.branch_scale * branch
        entropies = []
        for attention, kv in zip(self.cross_attentions, inputs, strict=True):
            q = attention.queries(self.norm(targets), positions)
            if temperature is not None:
                q = (q * temperature[:, None, None, None, None]).astype(q.dtype)
            # The targets share the inputs, so all their queries are one long sequence.
            queries = einops.rearrange(q, "b t n m c -> b (t n) m c")
            attended = kv.attend(queries).reshape(q.shape)
            targets = targets + self.branch_scale * attention.outputs(attended, positions)
            if diagnose:
                entropies.append(kv.relative_entropy(queries))
        targets = targets if shared.film is None else shared.film(targets)
        targets = targets + self.branch_scale * shared.mlp(self.norm(targets))
        if not diagnose:
            return targets, None
        return targets, LayerDiagnostics(rms(targets), jnp.stack(entropies).mean())


def rms(tokens: Float[Array, "*batch d"]) -> Float[Array, ""]:
    """Root mean square, in float32."""
    return jnp.sqrt(jnp.square(tokens.astype(jnp.float32)).mean())


class EfficientLVSM(ViewSynthesisModel):
    """Renders target views of a scene from posed input views.

    Examples:
        >>> model = EfficientLVSM(EfficientLVSMConfig(), rngs=nnx.Rngs(0))
        >>> renders = model(images, input_cameras, target_cameras)
    """

    config: EfficientLVSMConfig
    stacks: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def __init__(self, config: EfficientLVSMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        # The reference leaves torch's default initialisation in the encoder.
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def encoder_block(_: Array, rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(config, init=init, norm_scale=False, rngs=rngs)

        def decoder_block(index: Array, rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(config, index, rngs=rngs)

        self.encoder = layers.stack_layers(encoder_block, config.num_layers, rngs)
        self.decoder = layers.stack_layers(decoder_block, config.num_layers, rngs)
        self.head_norm, self.head = self.make_head(scale=False, rngs=rngs)
        # The last one: the others are those of a model without it.
        sizes = config.width, config.patch_size
        self.copy_head = CopyHead(*sizes, rngs=rngs) if config.copy_head else None

    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Memory:
        """Tokens of the input views after each layer; a view's depend on that view alone."""
        return self.encode_with_features(images, cameras, ())[0]

    def encode_with_features(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras, taps: Sequence[int]
    ) -> tuple[Memory, tuple[Float[Array, "b v n d"], ...]]:
        """What `encode` returns, and the tokens after the layers `taps`, counted from 1."""
        every_layer = self.config.co_refinement
        positions = self.positions(cameras, *images.shape[2:4])
        inside = None if positions is None else positions.inside

        def layer(views: Array, block: TransformerBlock) -> tuple[Array, Array | None]:
            views = block(views, positions=inside)
            return views, views if every_layer else None

        tokens = self.input_tokens(images, cameras)
        taken = () if every_layer else taps
        last, every, kept = layers.scan_layers(layer, tokens, self.encoder, taken, **self._loop)
        copied = None
        if self.copy_head is not None:
            copied = self.copy_head.source(last, images, cameras)
        if every_layer:
            return Memory(every, positions, copied), tuple(every[tap - 1] for tap in taps)
        return Memory(last[None], positions, copied), kept

    def positions(self, cameras: Cameras, height: int, width: int) -> Positions | None:
        """Of views of this size, where attention encodes cameras; else None."""
        encoding, patch = self.config.camera_encoding, self.config.patch_size
        if encoding == "plucker":
            return None
        return view_positions(encoding, cameras, height, width, patch, self.config.head_dim)

    def decode(
        self, memory: InputViews, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned, or from a cache."""
        tokens, _, _ = self.decode_tokens(memory, cameras, height, width)
        return self.render(tokens, memory, cameras, height, width)

    def decode_tokens(
        self,
        memory: InputViews,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        taps: Sequence[int] = (),
        diagnose: bool = False,
    ) -> tuple[Float[Array, "b t n d"], LayerDiagnostics | None, tuple[Array, ...]]:
        """Tokens after the last layer, diagnostics `[l]`, and tokens after the layers `taps`."""
        positions = self.positions(cameras, height, width)
        temperature = self.temperature(*memory.size)

        def layer(targets: Array, xs: tuple) -> tuple[Array, LayerDiagnostics | None]:
            block, encoder, own = xs
            inputs = memory.keys_values(block, own)
            return block(targets, inputs, positions, temperature, encoder, diagnose)

        encoder = self.encoder if self.config.shared_streams else None
        xs = self.decoder, encoder, memory.by_layer
        targets = self.target_tokens(cameras, height, width)
        return layers.scan_layers(layer, targets, xs, taps, **self._loop)

    @property
    def _loop(self) -> dict[str, Any]:
        """How the loops over the layers are compiled."""
        return {"remat": self.config.remat, "unroll": self.config.unroll}

    def temperature(self, views: Int[Array, "b"] | int, tokens: int) -> Float[Array, "#b"] | None:
        """Factor of the logits of cross-attention, by views and tokens of a view; None is 1."""
        if self.config.attention_temperature == "constant":
            return None
        keys = jnp.maximum(jnp.atleast_1d(views), 1) * tokens
        return jnp.log(keys) / math.log(2 * tokens)  # two input views are the published number

    def render_with_features(
        self,
        images: Float[Array, "b v h w 3"],
        input_cameras: Cameras,
        target_cameras: Cameras,
        encoder_layers: Sequence[int],
        decoder_layers: Sequence[int],
    ) -> tuple[Float[Array, "b t h w 3"], tuple[Array, ...], tuple[Array, ...]]:
        """What the call returns, and inputs' and targets' tokens after these layers, from 1 on."""
        check_images(images, input_cameras, self.config.patch_size, "input_cameras")
        height, width = images.shape[2:4]
        memory, inputs = self.encode_with_features(images, input_cameras, encoder_layers)
        tokens, _, targets = self.decode_tokens(
            memory, target_cameras, height, width, taps=decoder_layers
        )
        return self.render(tokens, memory, target_cameras, height, width), inputs, targets

    def render(
        self,
        tokens: Float[Array, "b t n d"],
        memory: InputViews,
        cameras: Cameras,
        height: int,
        width: int,
    ) -> Float[Array, "b t {height} {width} 3"]:
        """The images of the targets, from their tokens after the last layer and the input views."""
        regressed = self.pixels(tokens, height, width)
        if self.copy_head is None:
            return regressed
        return self.copy_head(tokens, regressed, memory.copied, cameras)

    def render_and_copy(
        self,
        images: Float[Array, "b v h w 3"],
        input_cameras: Cameras,
        target_cameras: Cameras,
        values: Float[Array, "b v h w k"],
    ) -> tuple[Float[Array, "b t h w 3"], Float[Array, "b t h w k"]]:
        """What the call returns, and `values` of the inputs' pixels as the head copies colours."""
        check_images(images, input_cameras, self.config.patch_size, "input_cameras")
        height, width = images.shape[2:4]
        memory = self.encode(images, input_cameras)
        source = memory.copied
        source = dataclasses.replace(source, images=jnp.concatenate([source.images, values], -1))
        tokens, _, _ = self.decode_tokens(memory, target_cameras, height, width)
        gate, copied = self.copy_head.copy(tokens, source, target_cameras, height, width)
        colors, values = copied[..., :3], copied[..., 3:]
        return gate * self.pixels(tokens, height, width) + (1 - gate) * colors, values

    def keys_values(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras
    ) -> tuple[tuple[DenseKV, ...], CopySource | None]:
        """All that targets ever read of the input views.

        Keys and values for each layer, `[l, b, v, s, m, c]`, and what a head that copies reads.
        """
        memory = self.encode(images, cameras)
        xs = self.decoder, memory.by_layer
        return jax.lax.map(lambda xs: memory.keys_values_by_view(*xs), xs), memory.copied
