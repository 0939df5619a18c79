"""Efficient-LVSM (arXiv 2602.06478): an encoder stream and a decoder stream, layer by layer.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view (`s` of an input view,
where targets have another size), `d` width, `l` layers, `m` heads, `c` head size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel, check_choice, check_images
from lvsm_jax.models.cameras import POSE_CHANNELS, Cameras
from lvsm_jax.models.layers import (
    MLP,
    Attention,
    LayerNorm,
    TransformerBlock,
    residual_init,
    scan_tapped,
    stack_layers,
)
from lvsm_jax.models.prope import Positions, view_positions
from lvsm_jax.models.spread_attention import cross_attention

# The reference leaves torch's default initialisation in the encoder.
_TORCH_DEFAULT_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

DECODER_ATTENTION = ("self_cross", "cross")
CACHE_DTYPES = ("float32", "bfloat16", "int8")
ATTENTION_TEMPERATURES = ("constant", "log_views")

# Input views with which both temperatures are the same: the published number.
_USUAL_VIEWS = 2

# Attention of queries to keys and values that it knows.
Attend = Callable[[Float[Array, "b t m c"]], Float[Array, "b t m c"]]
KeysValues = tuple[Float[Array, "b v s m c"], Float[Array, "b v s m c"]]


@dataclasses.dataclass(frozen=True)
class EfficientLVSMConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published model.

    `num_layers` is the layers of each stream. The first three fields are the paper's ablations;
    `camera_encoding` and `attention_temperature` go beyond it.

    Attributes:
        co_refinement: the decoder's layer l reads the encoder's tokens after its layer l; if
            False, every layer reads those after the encoder's last.
        decoder_attention: the attentions of a decoder layer. `self_cross`: inside the target view,
            then to the inputs; `cross`: twice to the inputs, so that a layer has as many
            attentions and weights (6 + 6 attention layers against 12) and a target's tokens never
            see each other. The latter keeps twice as many keys and values of an input view.
        shared_streams: the decoder's self-attention and MLP are the encoder's of the same layer;
            its cross-attention is its own. Needs `self_cross`.
        camera_encoding: how the model is told of cameras. `plucker`: by rays in the tokens, as
            published; `prope`: by relative projections in the decoder's cross-attention, with RoPE
            inside each view (`models.prope`), and rays in the camera's own axes, which tell
            nothing of its pose, in the tokens; `gta`: the same with relative poses alone in
            attention; `plucker_prope`: world rays in the tokens, and attention as in `prope`. With
            `prope` and `gta` no render depends on the world frame, only on its unit of length.
        attention_temperature: of the decoder's cross-attention. `constant`, as published;
            `log_views`: logits are multiplied by log(keys of all input views) / log(keys of two),
            so that attention does not flatten as views are added.
        cache_dtype: of the keys and values in a `ViewCache`: `float32`, `bfloat16`
            or `int8` (with a float32 scale for each token and head); empty for `dtype`.
    """

    spreads_views: ClassVar[bool] = True

    co_refinement: bool = True
    decoder_attention: str = "self_cross"
    shared_streams: bool = False
    camera_encoding: str = "plucker"
    attention_temperature: str = "constant"
    cache_dtype: str = ""

    def __post_init__(self):
        super().__post_init__()
        check_choice("decoder_attention", self.decoder_attention, DECODER_ATTENTION)
        check_choice("camera_encoding", self.camera_encoding, tuple(POSE_CHANNELS))
        check_choice("attention_temperature", self.attention_temperature, ATTENTION_TEMPERATURES)
        if self.camera_encoding != "plucker" and self.head_dim % 8:
            raise UserError(
                f"model.head_dim is {self.head_dim}, but model.camera_encoding="
                f"{self.camera_encoding!r} needs a multiple of 8"
            )
        if self.cache_dtype:
            check_choice("cache_dtype", self.cache_dtype, CACHE_DTYPES)
        if self.shared_streams and self.decoder_attention != "self_cross":
            raise UserError(
                "model.shared_streams shares self-attention, which a decoder with "
                f"model.decoder_attention={self.decoder_attention!r} does not have"
            )

    @property
    def num_cross_attentions(self) -> int:
        """Of a decoder layer: so many pairs of keys and values it reads of an input view."""
        return 2 if self.decoder_attention == "cross" else 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the decoder reads of the input views.

    Attributes:
        tokens: `[l, b, v, s, d]` after each layer; without co-refinement, after the last alone.
        positions: of the views; None where attention is told nothing of cameras.
    """

    tokens: Any
    positions: Positions | None


class DecoderBlock(nnx.Module):
    """Self-attention inside each target view, cross-attention to the inputs, then an MLP.

    What an ablation replaces or shares is None.
    """

    def __init__(self, config: EfficientLVSMConfig, index: Array, *, rngs: nnx.Rngs):
        init = residual_init(index)

        def attention() -> Attention:
            return Attention(config, init=init, rngs=rngs)

        sees_itself = config.decoder_attention == "self_cross"
        shared = config.shared_streams
        self.branch_scale = config.branch_scale
        self.norm = LayerNorm(config.width, scale=False)
        self.self_attention = attention() if sees_itself and not shared else None
        self.first_cross_attention = None if sees_itself else attention()
        self.cross_attention = attention()
        self.mlp = (
            None
            if shared
            else MLP(config.width, config.mlp_ratio, init=init, dtype=config.dtype, rngs=rngs)
        )

    def keys_values(
        self, views: Float[Array, "b v s d"], positions: Positions | None = None
    ) -> tuple[KeysValues, ...]:
        """What the targets of this layer read of the input views; each view's is its own.

        One pair for each cross-attention, in their order.
        """
        views = self.norm(views)
        attentions = (self.first_cross_attention, self.cross_attention)
        return tuple(a.keys_values(views, positions) for a in attentions if a is not None)

    def __call__(
        self,
        targets: Float[Array, "b t n d"],
        attends: tuple[Attend, ...],
        encoder: TransformerBlock | None,
        positions: Positions | None = None,
    ) -> Float[Array, "b t n d"]:
        """One layer; targets never see each other.

        Args:
            targets: tokens of the target views.
            attends: for each cross-attention, attention of all targets' queries to the inputs.
            encoder: the encoder's block of this layer, where the streams share weights.
            positions: of the target views, where attention is told.
        """
        if self.first_cross_attention is None:
            within = self.self_attention or encoder.self_attention
            normed, inside = self.norm(targets), positions and positions.inside
            branch = within(normed, within.keys_values(normed, inside), inside)
            targets = targets + self.branch_scale * branch
        else:
            targets = self._read(self.first_cross_attention, targets, attends[0], positions)
        targets = self._read(self.cross_attention, targets, attends[-1], positions)
        mlp = self.mlp or encoder.mlp
        return targets + self.branch_scale * mlp(self.norm(targets))

    def _read(
        self,
        attention: Attention,
        targets: Float[Array, "b t n d"],
        attend: Attend,
        positions: Positions | None,
    ) -> Float[Array, "b t n d"]:
        """Residual cross-attention to the tokens of all input views."""

        def attend_as_one(q: Float[Array, "b t n m c"]) -> Float[Array, "b t n m c"]:
            # The targets share the inputs, so all their queries are one long sequence.
            read = attend(einops.rearrange(q, "b t n m c -> b (t n) m c"))
            return einops.rearrange(read, "b (t n) m c -> b t n m c", t=q.shape[1])

        return targets + self.branch_scale * attention.read(
            self.norm(targets), attend_as_one, positions
        )


class EfficientLVSM(ViewSynthesisModel):
    """Renders target views of a scene from posed input views.

    Example:
        >>> model = EfficientLVSM(EfficientLVSMConfig(), rngs=nnx.Rngs(0))
        >>> renders = model(images, input_cameras, target_cameras)

    Args:
        config: sizes.
        rngs: source of the initial weights.
    """

    config: EfficientLVSMConfig
    stacks: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def __init__(self, config: EfficientLVSMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.encoder = stack_layers(
            lambda _, rngs: TransformerBlock(
                config, init=_TORCH_DEFAULT_INIT, norm_scale=False, rngs=rngs
            ),
            config.num_layers,
            rngs,
        )
        self.decoder = stack_layers(
            lambda index, rngs: DecoderBlock(config, index, rngs=rngs), config.num_layers, rngs
        )
        self.head_norm, self.head = self.make_head(scale=False, rngs=rngs)

    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Memory:
        """Tokens of the input views after each layer; a view's depend on that view alone."""
        return self.encode_with_features(images, cameras, ())[0]

    def encode_with_features(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras, taps: Sequence[int]
    ) -> tuple[Memory, tuple[Float[Array, "b v n d"], ...]]:
        """What `encode` returns, and the tokens after the layers `taps`, counted from 1."""
        every_layer = self.config.co_refinement
        positions = self.positions(cameras, *images.shape[2:4])
        inside = positions and positions.inside

        def layer(views: Array, block: TransformerBlock) -> tuple[Array, Array | None]:
            views = block(views, positions=inside)
            return views, views if every_layer else None

        tokens = self.input_tokens(images, cameras)
        if every_layer:
            _, every, _ = scan_tapped(layer, tokens, self.encoder, (), remat=self.config.remat)
            return Memory(every, positions), tuple(every[tap - 1] for tap in taps)
        last, _, kept = scan_tapped(layer, tokens, self.encoder, taps, remat=self.config.remat)
        return Memory(last[None], positions), kept

    def positions(self, cameras: Cameras, height: int, width: int) -> Positions | None:
        """Of views of this size, where attention is told of them; else None."""
        config = self.config
        if config.camera_encoding == "plucker":
            return None
        sizes = height, width, config.patch_size, config.head_dim
        return view_positions(config.camera_encoding, cameras, *sizes)

    def decode(
        self, memory: Memory, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""
        return self.pixels(self._decode(memory, cameras, height, width, ())[0], height, width)

    def render_with_features(
        self,
        images: Float[Array, "b v h w 3"],
        input_cameras: Cameras,
        target_cameras: Cameras,
        encoder_layers: Sequence[int],
        decoder_layers: Sequence[int],
    ) -> tuple[
        Float[Array, "b t h w 3"],
        tuple[Float[Array, "b v n d"], ...],
        tuple[Float[Array, "b t n d"], ...],
    ]:
        """What the call returns, and tokens on the way, for losses that look at them.

        Args:
            images: as of the call, like the cameras.
            input_cameras: of the images.
            target_cameras: to render.
            encoder_layers: layers, counted from 1, after which to return the inputs' tokens.
            decoder_layers: the same of the targets' tokens.
        """
        check_images(images, input_cameras, self.config.patch_size, "input_cameras")
        height, width = images.shape[2:4]
        memory, inputs = self.encode_with_features(images, input_cameras, encoder_layers)
        tokens, targets = self._decode(memory, target_cameras, height, width, decoder_layers)
        return self.pixels(tokens, height, width), inputs, targets

    def _decode(
        self, memory: Memory, cameras: Cameras, height: int, width: int, taps: Sequence[int]
    ) -> tuple:
        """The targets' tokens after the last layer, and after the layers `taps`."""

        def attends(block: DecoderBlock, views: Array | None) -> tuple[Attend, ...]:
            views = memory.tokens[0] if views is None else views
            pairs = block.keys_values(views, memory.positions)
            some = (functools.partial(self.attend, keys_values=pair) for pair in pairs)
            return tuple(self.sharpened(attend, *views.shape[1:3]) for attend in some)

        xs = memory.tokens if self.config.co_refinement else None
        return self._decode_tokens(attends, xs, cameras, height, width, taps)

    def sharpened(self, attend: Attend, views: Int[Array, "b"] | int, tokens: int) -> Attend:
        """Attention to the inputs at the temperature that the configuration says.

        Args:
            attend: at the constant one.
            views: input views, of each scene.
            tokens: of an input view.
        """
        if self.config.attention_temperature == "constant":
            return attend
        keys = jnp.maximum(jnp.asarray(views), 1) * tokens
        factor = jnp.log(keys) / math.log(_USUAL_VIEWS * tokens)
        return lambda q: attend((q * factor.reshape(-1, 1, 1, 1)).astype(q.dtype))

    def decode_from(
        self,
        attends: Callable[[DecoderBlock, Any], tuple[Attend, ...]],
        xs: Any,
        cameras: Cameras,
        height: int,
        width: int,
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras, wherever the inputs' keys and values are.

        Args:
            attends: from a layer's block and its part of `xs`, how that layer reads the inputs.
            xs: pytree of arrays with the layers first.
            cameras: `[b, t]` to render.
            height: of the renders.
            width: of the renders.
        """
        tokens, _ = self._decode_tokens(attends, xs, cameras, height, width, ())
        return self.pixels(tokens, height, width)

    def _decode_tokens(
        self,
        attends: Callable,
        xs: Any,
        cameras: Cameras,
        height: int,
        width: int,
        taps: Sequence[int],
    ) -> tuple[Array, tuple[Array, ...]]:
        positions = self.positions(cameras, height, width)

        def layer(targets: Array, xs: tuple) -> tuple[Array, None]:
            block, encoder, x = xs
            return block(targets, attends(block, x), encoder, positions), None

        layers = (self.decoder, self.encoder if self.config.shared_streams else None, xs)
        tokens = self.target_tokens(cameras, height, width)
        last, _, kept = scan_tapped(layer, tokens, layers, taps, remat=self.config.remat)
        return last, kept

    def keys_values(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras
    ) -> tuple[tuple[Float[Array, "l b v s m c"], Float[Array, "l b v s m c"]], ...]:
        """All that targets ever read of the input views; each view's is its own."""
        memory = self.encode(images, cameras)

        def layer(_: None, xs: tuple) -> tuple[None, Any]:
            block, views = xs
            views = memory.tokens[0] if views is None else views
            return None, block.keys_values(views, memory.positions)

        xs = (self.decoder, memory.tokens if self.config.co_refinement else None)
        return jax.lax.scan(layer, None, xs)[1]

    def attend(
        self, queries: Float[Array, "b t m c"], keys_values: KeysValues
    ) -> Float[Array, "b t m c"]:
        """What queries of all targets read of the input views, at the constant temperature."""
        k, v = (einops.rearrange(x, "b v s m c -> b (v s) m c") for x in keys_values)
        return cross_attention(queries, k, v, implementation=self.config.attention)
