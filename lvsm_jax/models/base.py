"""What all view synthesis models share: configuration, tokenizers, head, and the call.

A model reads its input views once (`encode`) and renders any cameras from what that returns
(`decode`). Letters: `b` scenes, `v` input views, `t` target views, `n` tokens a view, `d` width,
`h w` pixels.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.attention import IMPLEMENTATIONS
from lvsm_jax.models.cameras import POSE_CHANNELS, Cameras, pose_conditioning
from lvsm_jax.models.layers import (
    DTYPES,
    REMAT_POLICIES,
    LayerNorm,
    Linear,
    check_image_size,
    patchify,
    unpatchify,
)

# Fields of a configuration that say how to compute; weights need not agree with them.
HOW_TO_COMPUTE = ("dtype", "attention", "remat", "targets_at_once", "cache_dtype")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model and how it is computed.

    Attributes:
        num_layers: layers, see the model.
        width: channels of a token.
        head_dim: channels of an attention head.
        patch_size: side of a patch in pixels.
        mlp_ratio: hidden channels of the MLPs over `width`.
        dtype: of activations and matmuls; norms, softmax and weights stay float32.
        attention: implementation, see `lvsm_jax.models.attention.attention`.
        remat: what the backward pass recomputes, see `lvsm_jax.models.layers.scan_layers`.
        residual_scaling: multiply every residual branch by 1 / √num_layers, so that one learning
            rate is stable at all depths (arXiv 2602.21341).
    """

    num_layers: int = 12
    width: int = 768
    head_dim: int = 64
    patch_size: int = 8
    mlp_ratio: int = 4
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    residual_scaling: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in HOW_TO_COMPUTE else 1
            if type(value) is int and value < least:
                raise UserError(f"model.{field.name} is {value}, expected at least {least}")
        if self.width % self.head_dim:
            raise UserError(
                f"model.width {self.width} is not a multiple of model.head_dim {self.head_dim}"
            )
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("attention", self.attention, IMPLEMENTATIONS)
        check_choice("remat", self.remat, REMAT_POLICIES)

    # Whether each input view is encoded by itself, so that devices can have some of them each.
    spreads_views: ClassVar[bool] = False
    # How the model is told of cameras, one of `lvsm_jax.models.cameras.POSE_CHANNELS`.
    camera_encoding: ClassVar[str] = "plucker"

    @property
    def pose_channels(self) -> int:
        """What a pixel of a token says of its camera, in numbers."""
        return POSE_CHANNELS[self.camera_encoding]

    @property
    def branch_scale(self) -> float:
        """By what every residual branch is multiplied."""
        return self.num_layers**-0.5 if self.residual_scaling else 1.0

    def check_spread(self, devices: int) -> None:
        """Raises ValueError if input views cannot be spread over so many devices."""
        if devices > 1 and not self.spreads_views:
            raise UserError(
                f"mesh.view is {devices}, but in {type(self).__name__.removesuffix('Config')} the "
                "tokens of all input views attend to each other, so they cannot be spread over "
                "devices; use mesh.data and mesh.fsdp"
            )

    @property
    def structure(self) -> dict[str, Any]:
        """The fields that decide which weights there are, and what they mean."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in HOW_TO_COMPUTE}

    @property
    def options(self) -> dict[str, Any]:
        """The other fields, which say how to compute."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name in HOW_TO_COMPUTE}


def check_options(config_class: type[ModelConfig], options: Mapping[str, Any]) -> None:
    """Raises ValueError unless the options are fields of how to compute such a model."""
    known = [f.name for f in dataclasses.fields(config_class) if f.name in HOW_TO_COMPUTE]
    if others := sorted(options.keys() - set(known)):
        raise UserError(f"{others} cannot be chosen for these weights, only {known}")


def check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless the value of a field of the configuration is a known one."""
    if value not in known:
        raise UserError(f"model.{field} is {value!r}, expected one of {known}")


class ViewSynthesisModel(nnx.Module):
    """Renders target views of a scene from posed input views.

    Subclasses make their layers, then the head by `make_head`.

    Args:
        config: sizes.
        rngs: source of the initial weights.
    """

    head_norm: LayerNorm
    head: Linear
    # Parts of the model in which layers are stacked first, by name.
    stacks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        pixels = config.patch_size**2
        poses = config.pose_channels
        self.input_tokenizer = self._linear((3 + poses) * pixels, config.width, rngs)
        self.target_tokenizer = self._linear(poses * pixels, config.width, rngs)

    def make_head(self, *, scale: bool, rngs: nnx.Rngs) -> tuple[LayerNorm, Linear]:
        """Norm (with a learned scale or without) and linear map from a token to its patch."""
        width, patch = self.config.width, self.config.patch_size
        return LayerNorm(width, scale=scale), self._linear(width, 3 * patch**2, rngs)

    def _linear(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
        init = nnx.initializers.normal(0.02)
        return Linear(inputs, outputs, init=init, dtype=self.config.dtype, rngs=rngs)

    @abc.abstractmethod
    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Any:
        """What the model keeps of the input views: all that does not depend on the targets."""

    @abc.abstractmethod
    def decode(
        self, memory: Any, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""

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
        check_images(images, input_cameras, self.config.patch_size, "input_cameras")
        if 0 in images.shape or 0 in target_cameras.shape:
            raise UserError(
                f"images of shape {images.shape} and {target_cameras.shape} target_cameras: "
                "nothing to render"
            )
        target_cameras.check("target_cameras")
        if target_cameras.shape[0] != images.shape[0]:
            raise UserError(
                f"images of {images.shape[0]} scenes with target_cameras of "
                f"{target_cameras.shape[0]}"
            )
        return _render(self, jnp.asarray(images), input_cameras, target_cameras)

    def input_tokens(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras
    ) -> Float[Array, "b v n d"]:
        """Tokens of input views: colours in [-1, 1] and rays."""
        height, width = images.shape[2:4]
        pixels = jnp.concatenate([images * 2 - 1, self._poses(cameras, height, width)], axis=-1)
        return self.input_tokenizer(patchify(pixels, self.config.patch_size))

    def target_tokens(self, cameras: Cameras, height: int, width: int) -> Float[Array, "b t n d"]:
        """Tokens of target views: rays alone."""
        poses = self._poses(cameras, height, width)
        return self.target_tokenizer(patchify(poses, self.config.patch_size))

    def _poses(self, cameras: Cameras, height: int, width: int) -> Float[Array, "b v h w channels"]:
        return pose_conditioning(self.config.camera_encoding, cameras, height, width)

    def pixels(
        self, tokens: Float[Array, "b t n d"], height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """The images that the targets' last tokens stand for."""
        logits = self.head(self.head_norm(tokens)).astype(jnp.float32)
        return unpatchify(jax.nn.sigmoid(logits), self.config.patch_size, height, width)


@jax.jit
def _render(model: ViewSynthesisModel, images: Array, inputs: Cameras, targets: Cameras) -> Array:
    memory = model.encode(images, inputs)
    return model.decode(memory, targets, *images.shape[2:4])


def check_images(
    images: Array | np.ndarray, cameras: Cameras, patch: int, name: str = "cameras"
) -> None:
    """Raises ValueError unless these are posed images that a model can read.

    Values are checked where they are known, not while tracing.
    """
    if images.ndim != 5 or images.shape[-1] != 3:
        raise UserError(f"images have shape {images.shape}, expected [b, v, h, w, 3]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}, expected float in [0, 1]: divide 8-bit images by 255"
        )
    check_image_size(*images.shape[2:4], patch)
    cameras.check(name)
    if cameras.shape != images.shape[:2]:
        raise UserError(f"images of [b, v] = {images.shape[:2]} with {name} of {cameras.shape}")
    if images.size and not isinstance(images, jax.core.Tracer):
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise UserError(f"images reach from {low} to {high}, expected [0, 1]")
