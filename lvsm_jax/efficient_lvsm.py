"""Efficient-LVSM (arXiv 2602.06478): an encoder stream and a decoder stream, layer by layer.

Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view, `d` width, `l` layers,
`m` heads, `c` head size, `h w` pixels, `p` patch.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lvsm_jax.attention import IMPLEMENTATIONS
from lvsm_jax.cameras import Cameras, plucker
from lvsm_jax.layers import (
    MLP,
    REMAT_POLICIES,
    Attention,
    Initializer,
    Linear,
    layer_norm,
    patchify,
    scan_layers,
    stack_layers,
    unpatchify,
)

DTYPES = ("float32", "bfloat16")

# Fields of the configuration that weights must agree with; the others say how to compute.
SIZES = ("num_layers", "width", "head_dim", "patch_size", "mlp_ratio")


@dataclasses.dataclass(frozen=True)
class EfficientLVSMConfig:
    """Sizes of the model and how it is computed; the defaults are the published model.

    Attributes:
        num_layers: layers of each stream.
        width: channels of a token.
        head_dim: channels of an attention head.
        patch_size: side of a patch in pixels.
        mlp_ratio: hidden channels of the MLPs over `width`.
        dtype: of activations and matmuls; norms, softmax and weights stay float32.
        attention: implementation, see `lvsm_jax.attention.attention`.
        remat: what the backward pass recomputes, see `lvsm_jax.layers.scan_layers`.
    """

    num_layers: int = 12
    width: int = 768
    head_dim: int = 64
    patch_size: int = 8
    mlp_ratio: int = 4
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        for field in SIZES:
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} is {getattr(self, field)}, expected at least 1")
        if self.width % self.head_dim:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.head_dim {self.head_dim}"
            )
        for field, known in (
            ("dtype", DTYPES),
            ("attention", IMPLEMENTATIONS),
            ("remat", REMAT_POLICIES),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"model.{field} is {getattr(self, field)!r}, expected one of {known}"
                )


class EncoderBlock(nnx.Module):
    """Self-attention inside each input view, then an MLP."""

    def __init__(self, config: EfficientLVSMConfig, *, rngs: nnx.Rngs):
        # The reference leaves torch's default initialisation in this stream.
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.self_attention = _attention(config, init, rngs)
        self.mlp = MLP(config.width, config.mlp_ratio, init=init, dtype=config.dtype, rngs=rngs)

    def __call__(self, views: Float[Array, "b v n d"]) -> Float[Array, "b v n d"]:
        """One layer; views never see each other."""
        views = _attend_within(self.self_attention, views)
        return views + self.mlp(layer_norm(views))


class DecoderBlock(nnx.Module):
    """Self-attention inside each target view, cross-attention to the inputs, then an MLP."""

    def __init__(self, config: EfficientLVSMConfig, index: Array, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02 / jnp.sqrt(2 * (index + 1)))
        self.self_attention = _attention(config, init, rngs)
        self.cross_attention = _attention(config, init, rngs)
        self.mlp = MLP(config.width, config.mlp_ratio, init=init, dtype=config.dtype, rngs=rngs)

    def keys_values(
        self, views: Float[Array, "b v n d"]
    ) -> tuple[Float[Array, "b v n m c"], Float[Array, "b v n m c"]]:
        """What the targets of this layer read of the input views; each view's is its own."""
        return self.cross_attention.keys_values(layer_norm(views))

    def __call__(
        self,
        targets: Float[Array, "b t n d"],
        keys_values: tuple[Float[Array, "b v s m c"], Float[Array, "b v s m c"]],
    ) -> Float[Array, "b t n d"]:
        """One layer; targets never see each other."""
        targets = _attend_within(self.self_attention, targets)
        # The targets share the inputs, so all their queries are one long sequence.
        t = targets.shape[1]
        queries = einops.rearrange(layer_norm(targets), "b t n d -> b (t n) d")
        k, v = (einops.rearrange(x, "b v s m c -> b (v s) m c") for x in keys_values)
        read = self.cross_attention(queries, (k, v))
        targets = targets + einops.rearrange(read, "b (t n) d -> b t n d", t=t)
        return targets + self.mlp(layer_norm(targets))


class EfficientLVSM(nnx.Module):
    """Renders target views of a scene from posed input views.

    Example:
        >>> model = EfficientLVSM(EfficientLVSMConfig(), rngs=nnx.Rngs(0))
        >>> renders = model(images, input_cameras, target_cameras)

    Args:
        config: sizes.
        rngs: source of the initial weights.
    """

    def __init__(self, config: EfficientLVSMConfig, *, rngs: nnx.Rngs):
        self.config = config
        pixels = config.patch_size**2
        options = {
            "init": nnx.initializers.normal(0.02),
            "dtype": config.dtype,
            "rngs": rngs,
        }
        self.input_tokenizer = Linear(9 * pixels, config.width, **options)
        self.target_tokenizer = Linear(6 * pixels, config.width, **options)
        self.encoder = stack_layers(
            lambda _, rngs: EncoderBlock(config, rngs=rngs), config.num_layers, rngs
        )
        self.decoder = stack_layers(
            lambda index, rngs: DecoderBlock(config, index, rngs=rngs), config.num_layers, rngs
        )
        self.head = Linear(config.width, 3 * pixels, **options)

    def __call__(
        self,
        images: Array | np.ndarray,
        input_cameras: Cameras,
        target_cameras: Cameras,
    ) -> Float[Array, "b t h w 3"]:
        """Renders the targets at the size of the inputs, float32 in [0, 1].

        Args:
            images: `[b, v, h, w, 3]` input views, float in [0, 1].
            input_cameras: cameras of the input views, `[b, v]`.
            target_cameras: cameras to render, `[b, t]`.

        Raises:
            ValueError: shapes that do not agree, a size that is not a multiple of the patch,
                images that are not float in [0, 1], cameras that are not finite. Values are
                checked where they are known, not while tracing.
        """
        self._check(images, input_cameras, target_cameras)
        return _render(self, jnp.asarray(images), input_cameras, target_cameras)

    def encode(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras
    ) -> Float[Array, "l b v n d"]:
        """Tokens of the input views after each layer; a view's depend on that view alone."""
        height, width = images.shape[2:4]
        pixels = jnp.concatenate([images * 2 - 1, plucker(cameras, height, width)], axis=-1)
        tokens = self.input_tokenizer(patchify(pixels, self.config.patch_size))

        def layer(views: Array, block: EncoderBlock) -> tuple[Array, Array]:
            views = block(views)
            return views, views

        return scan_layers(layer, tokens, self.encoder, remat=self.config.remat)[1]

    def decode(
        self, memory: Float[Array, "l b v s d"], cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""
        patch = self.config.patch_size
        tokens = self.target_tokenizer(patchify(plucker(cameras, height, width), patch))

        def layer(targets: Array, xs: tuple[DecoderBlock, Array]) -> tuple[Array, None]:
            block, views = xs
            return block(targets, block.keys_values(views)), None

        layers = (self.decoder, memory)
        tokens, _ = scan_layers(layer, tokens, layers, remat=self.config.remat)
        logits = self.head(layer_norm(tokens)).astype(jnp.float32)
        return unpatchify(jax.nn.sigmoid(logits), patch, height, width)

    def _check(self, images: Array | np.ndarray, inputs: Cameras, targets: Cameras) -> None:
        if images.ndim != 5 or images.shape[-1] != 3:
            raise ValueError(f"images have shape {images.shape}, expected [b, v, h, w, 3]")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}, expected float in [0, 1]: divide 8-bit images by 255"
            )
        patch = self.config.patch_size
        height, width = images.shape[2:4]
        if height % patch or width % patch:
            raise ValueError(
                f"images are {height}×{width} pixels, expected multiples of the patch size {patch}"
            )
        inputs.check("input_cameras")
        targets.check("target_cameras")
        if inputs.shape != images.shape[:2]:
            raise ValueError(
                f"images of [b, v] = {images.shape[:2]} with input_cameras of {inputs.shape}"
            )
        if targets.shape[0] != images.shape[0]:
            raise ValueError(
                f"images of {images.shape[0]} scenes with target_cameras of {targets.shape[0]}"
            )
        if not isinstance(images, jax.core.Tracer):
            low, high = float(images.min()), float(images.max())
            if not (low >= 0 and high <= 1):  # also false for NaN
                raise ValueError(f"images reach from {low} to {high}, expected [0, 1]")


@jax.jit
def _render(model: EfficientLVSM, images: Array, inputs: Cameras, targets: Cameras) -> Array:
    memory = model.encode(images, inputs)
    return model.decode(memory, targets, *images.shape[2:4])


def _attention(config: EfficientLVSMConfig, init: Initializer, rngs: nnx.Rngs) -> Attention:
    return Attention(
        config.width,
        config.head_dim,
        init=init,
        dtype=config.dtype,
        implementation=config.attention,
        rngs=rngs,
    )


def _attend_within(block: Attention, tokens: Array) -> Array:
    """Residual self-attention over the tokens of each view alone."""
    normed = layer_norm(tokens)
    return tokens + block(normed, block.keys_values(normed))
