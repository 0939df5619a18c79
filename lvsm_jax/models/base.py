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

from lvsm_jax.common.checks import check_at_least, check_choice
from lvsm_jax.common.errors import UserError
from lvsm_jax.models import layers
from lvsm_jax.models.attention import IMPLEMENTATIONS
from lvsm_jax.models.cameras import POSE_CHANNELS, Cameras, can_read, pose_conditioning
from lvsm_jax.models.halves import HALVES, HalvesTokenizer, each_half


def computation(default: Any) -> Any:
    """A field of a ModelConfig that says how to compute; weights need not agree with it.

    All other fields are the structure: they decide which weights there are and what they mean.
    """
    return dataclasses.field(default=default, metadata={"computation": True})


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
        residual_dtype: of the tokens between the layers, to which every branch is added; empty for
            `dtype`. The published LVSM programs compute in bfloat16 and keep it in float32.
        attention: implementation, see `lvsm_jax.models.attention.attention`.
        remat: what the backward pass recomputes, see `lvsm_jax.models.layers.scan_layers`.
        unroll: whether the layers are one program, and no loop. It takes longer to compile, and
            spares copies of what the backward pass needs (docs/developers/gpus.md).
        residual_scaling: multiply every residual branch by 1 / √num_layers, so that one learning
            rate is stable at all depths (arXiv 2602.21341).
        time_channel: beside the rays of its pixels, each token has the time of its view
            (`Cameras.time`), for scenes in which something moves (arXiv 2604.07350).
    """

    num_layers: int = 12
    width: int = 768
    head_dim: int = 64
    patch_size: int = 8
    mlp_ratio: int = 4
    dtype: str = computation("float32")
    residual_dtype: str = computation("")
    attention: str = computation("auto")
    remat: str = computation("none")
    unroll: bool = computation(False)
    residual_scaling: bool = False
    time_channel: bool = False

    # Whether each input view is encoded by itself, so that devices can have some of them each.
    spreads_views: ClassVar[bool] = False
    # Whether attention normalises queries and keys.
    qk_norm: ClassVar[bool] = True
    # Whether colours and rays of a token have maps of their own, of `models.halves.HALVES`.
    halves: ClassVar[str] = "joint"

    def __post_init__(self):
        for fields, least in ((self.structure, 1), (self.options, 0)):
            numbers = {name: least for name, value in fields.items() if type(value) is int}
            check_at_least("model", self, **numbers)
        if self.width % self.head_dim:
            raise UserError(
                f"model.width {self.width} is not a multiple of model.head_dim {self.head_dim}"
            )
        check_choice("model.halves", self.halves, HALVES)
        if self.halves != "joint" and self.width % (2 * self.head_dim):
            raise UserError(
                f"model.halves is {self.halves!r}, but half of model.width {self.width} is not a "
                f"multiple of model.head_dim {self.head_dim}"
            )
        check_choice("model.dtype", self.dtype, layers.DTYPES)
        check_choice("model.residual_dtype", self.residual_dtype, ("", *layers.DTYPES))
        check_choice("model.attention", self.attention, IMPLEMENTATIONS)
        check_choice("model.remat", self.remat, layers.REMAT_POLICIES)

    @property
    def pose_encoding(self) -> str:
        """How tokens encode their camera, of `lvsm_jax.models.cameras.POSE_CHANNELS`."""
        return "plucker"

    @property
    def pose_channels(self) -> int:
        """Number of channels per pixel beside colours: of poses, and of time where there is one."""
        return POSE_CHANNELS[self.pose_encoding] + self.time_channel

    @property
    def own_target_tokenizer(self) -> bool:
        """Whether the rays of targets have a tokenizer other than those of the inputs."""
        return True

    @property
    def branch_scale(self) -> float:
        """Factor of every residual branch."""
        return self.num_layers**-0.5 if self.residual_scaling else 1.0

    def check_spread(self, devices: int) -> None:
        """Raises UserError if input views cannot be sharded over this many devices."""
        if devices > 1 and not self.spreads_views:
            raise UserError(
                f"mesh.view is {devices}, but in {type(self).__name__.removesuffix('Config')} the "
                "tokens of all input views attend to each other, so they cannot be spread over "
                "devices; use mesh.data and mesh.fsdp"
            )

    @property
    def structure(self) -> dict[str, Any]:
        """The fields that decide which weights there are, and what they mean."""
        everything, options = dataclasses.asdict(self), self.options
        return {name: value for name, value in everything.items() if name not in options}

    @property
    def options(self) -> dict[str, Any]:
        """The fields that say how to compute."""
        return {name: getattr(self, name) for name in _option_names(type(self))}


def check_camera_encoding(config: ModelConfig) -> None:
    """Raises UserError unless `config.camera_encoding` is known and fits the heads."""
    check_choice("model.camera_encoding", config.camera_encoding, POSE_CHANNELS)
    if config.camera_encoding != "plucker" and config.head_dim % 8:
        raise UserError(
            f"model.head_dim is {config.head_dim}, but model.camera_encoding="
            f"{config.camera_encoding!r} needs a multiple of 8"
        )


def check_times(config: ModelConfig, name: str, cameras: Any) -> None:
    """Raises UserError unless cameras have a `time` just where the model has a channel for it."""
    if config.time_channel and cameras.time is None:
        raise UserError(
            f"{name} have no time, which this model takes (model.time_channel): give each view one "
            "from 0 to 1"
        )
    if cameras.time is not None and not config.time_channel:
        raise UserError(
            f"{name} have times, but this model knows none: it needs model.time_channel=True, and "
            "its own training"
        )


def readable_cameras(model: Any, cameras: Cameras) -> Cameras:
    """Cameras of a batch as a model reads them: without times if it has no channel for these.

    So models without it learn scenes that move, too, and can be compared.
    """
    has_channel = getattr(getattr(model, "config", None), "time_channel", False)
    return cameras if has_channel else cameras.timeless


def _option_names(config_class: type[ModelConfig]) -> list[str]:
    fields = dataclasses.fields(config_class)
    return [field.name for field in fields if "computation" in field.metadata]


def check_options(config_class: type[ModelConfig], options: Mapping[str, Any]) -> None:
    """Raises UserError unless the options are fields of how to compute such a model."""
    known = _option_names(config_class)
    if others := sorted(options.keys() - set(known)):
        raise UserError(f"{others} cannot be chosen for these weights, only {known}")


class ViewSynthesisModel(nnx.Module):
    """Renders target views of a scene from posed input views.

    Subclasses make their layers, then the head by `make_head`.
    """

    head_norm: nnx.Module
    head: layers.Linear
    stacks: ClassVar[tuple[str, ...]] = ()  # names of the stacks of layers
    has_target_tokens: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.input_tokenizer = self._tokenizer(3, rngs)
        if self.has_target_tokens and config.own_target_tokenizer:
            self.target_tokenizer = self._tokenizer(0, rngs)

    def make_head(self, *, scale: bool, rngs: nnx.Rngs) -> tuple[nnx.Module, layers.Linear]:
        """Norm (with a learned scale or without) and linear map from a token to its patch."""
        width, patch = self.config.width, self.config.patch_size
        norm = each_half(self.config, lambda width: layers.LayerNorm(width, scale=scale))
        return norm, self._linear(width, 3 * patch**2, rngs)

    def _tokenizer(self, colors: int, rngs: nnx.Rngs) -> nnx.Module:
        """From patches whose pixels have so many channels of colour, and those of poses."""
        width, poses = self.config.width, self.config.pose_channels
        pixels = self.config.patch_size**2
        if self.config.halves == "joint":
            return self._linear((colors + poses) * pixels, width, rngs)
        of_colors = self._linear(colors * pixels, width // 2, rngs) if colors else None
        of_rays = self._linear(poses * pixels, width // 2, rngs)
        return HalvesTokenizer(of_colors, of_rays, pixels)

    def _linear(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> layers.Linear:
        init = nnx.initializers.normal(0.02)
        return layers.Linear(inputs, outputs, init=init, dtype=self.config.dtype, rngs=rngs)

    @abc.abstractmethod
    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Any:
        """All that the model computes of the input views without knowing the targets."""

    @abc.abstractmethod
    def decode(
        self, memory: Any, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned."""

    def __call__(
        self, images: Array | np.ndarray, input_cameras: Cameras, target_cameras: Cameras
    ) -> Float[Array, "b t h w 3"]:
        """Renders the target cameras `[b, t]` at the size of the inputs, float32 in [0, 1].

        The input views are images `[b, v, h, w, 3]`, float in [0, 1], with cameras `[b, v]`. Raises
        UserError for shapes that do not agree, a size that is not a multiple of the patch, images
        that are not float in [0, 1], or cameras that are not finite. Values are not checked while
        tracing.
        """
        check_images(images, input_cameras, self.config.patch_size, "input_cameras")
        shape, targets = images.shape, target_cameras.shape
        if 0 in (*shape, *targets):
            raise UserError(
                f"images of shape {shape} and {targets} target_cameras: nothing to render"
            )
        target_cameras.check("target_cameras")
        for name, cameras in (("input_cameras", input_cameras), ("target_cameras", target_cameras)):
            check_times(self.config, name, cameras)
        if targets[0] != shape[0]:
            raise UserError(f"images of {shape[0]} scenes with target_cameras of {targets[0]}")
        return _render(self, jnp.asarray(images), input_cameras, target_cameras)

    def input_tokens(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras
    ) -> Float[Array, "b v n d"]:
        """Tokens of input views: colours in [-1, 1] and rays, and their time if it is known."""
        poses = self._conditioning(cameras, *images.shape[2:4])
        pixels = jnp.concatenate([images * 2 - 1, poses], axis=-1)
        return self._tokens(self.input_tokenizer, pixels)

    def target_tokens(self, cameras: Cameras, height: int, width: int) -> Float[Array, "b t n d"]:
        """Tokens of target views: rays alone, and their time if it is known."""
        poses = self._conditioning(cameras, height, width)
        own = self.config.own_target_tokenizer
        return self._tokens(self.target_tokenizer if own else self.input_tokenizer, poses)

    def _conditioning(
        self, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b v {height} {width} ch"]:
        """What tokens know of every pixel beside its colour; times in [-1, 1], as colours are."""
        check_times(self.config, "cameras", cameras)
        poses = pose_conditioning(self.config.pose_encoding, cameras, height, width)
        if not self.config.time_channel:
            return poses
        time = 2 * jnp.asarray(cameras.time, jnp.float32)[..., None, None, None] - 1
        return jnp.concatenate([poses, jnp.broadcast_to(time, (*poses.shape[:-1], 1))], axis=-1)

    def _tokens(
        self, tokenizer: nnx.Module, pixels: Float[Array, "b v h w ch"]
    ) -> Float[Array, "b v n d"]:
        tokens = tokenizer(layers.patchify(pixels, self.config.patch_size))
        return tokens.astype(self.config.residual_dtype or tokens.dtype)

    def pixels(
        self, tokens: Float[Array, "b t n d"], height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """The images of the targets, from their tokens after the last layer."""
        logits = self.head(self.head_norm(tokens)).astype(jnp.float32)
        return layers.unpatchify(jax.nn.sigmoid(logits), self.config.patch_size, height, width)


@jax.jit
def _render(model: ViewSynthesisModel, images: Array, inputs: Cameras, targets: Cameras) -> Array:
    memory = model.encode(images, inputs)
    return model.decode(memory, targets, *images.shape[2:4])


def check_images(
    images: Any, cameras: Cameras, patch: int, name: str = "cameras", *, read_device: bool = True
) -> None:
    """Raises UserError unless a model can read these posed images; values as `can_read` says."""
    if images.ndim != 5 or images.shape[-1] != 3:
        raise UserError(f"images have shape {images.shape}, expected [b, v, h, w, 3]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}, expected float in [0, 1]: divide 8-bit images by 255"
        )
    layers.check_image_size(*images.shape[2:4], patch)
    cameras.check(name, read_device=read_device)
    if cameras.shape != images.shape[:2]:
        raise UserError(f"images of [b, v] = {images.shape[:2]} with {name} of {cameras.shape}")
    if images.size and can_read(images, read_device):
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise UserError(f"images reach from {low} to {high}, expected [0, 1]")
