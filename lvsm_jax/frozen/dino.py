"""DINOv2 and DINOv3 vision transformers: frozen teachers whose features a model is aligned with.

Features only, equal to the published programs' (arXiv 2304.07193 and 2508.10104): tokens of the
patches after any block; there is no final norm. Special tokens come first: class, then DINOv3's
storage tokens (registers).

Letters: `b` images, `gh gw` grid of patches, `n` tokens, `d` width, `m` heads, `c` head size.
"""

import dataclasses
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lvsm_jax.common.checks import check_choice
from lvsm_jax.common.errors import UserError
from lvsm_jax.models import layers
from lvsm_jax.models.attention import attention

Rotation = tuple[Float[Array, "n c"], Float[Array, "n c"]]

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's colours
_INIT = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    """Sizes of a teacher, and how it is computed; the defaults are DINOv3's ViT-B/16."""

    num_layers: int = 12
    width: int = 768
    head_dim: int = 64
    patch_size: int = 16
    mlp_ratio: int = 4  # hidden channels of the MLPs over `width`
    num_special: int = 5  # tokens before the patches': class and storage tokens
    position_grid: int = 0  # side of the learned grid of positions (DINOv2); 0 for rotary ones
    norm_eps: float = 1e-5
    image_size: int = 512  # side in pixels of the square images that it is given in training
    dtype: str = "float32"  # of matmuls; norms, softmax and the sum over blocks stay float32
    attention: str = "auto"  # see `lvsm_jax.models.attention.attention`

    def __post_init__(self):
        check_choice("dtype of a teacher", self.dtype, layers.DTYPES)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which it looks at images of this shape.

        As many pixels as `image_size` squared, and the shape, both as nearly as patches allow.
        """
        sides = np.array([height, width]) * self.image_size / np.sqrt(height * width)
        return tuple(int(max(1, round(side))) * self.patch_size for side in sides / self.patch_size)


_DINOV2 = DinoConfig(patch_size=14, num_special=1, position_grid=37, norm_eps=1e-6, image_size=336)
_LARGE = {"num_layers": 24, "width": 1024}

TEACHERS: dict[str, DinoConfig] = {
    "dinov3_vits16": DinoConfig(width=384),
    "dinov3_vitb16": DinoConfig(),
    "dinov3_vitl16": DinoConfig(**_LARGE),
    "dinov2_vits14": dataclasses.replace(_DINOV2, width=384),
    "dinov2_vitb14": _DINOV2,
    "dinov2_vitl14": dataclasses.replace(_DINOV2, **_LARGE),
}


class DinoBlock(nnx.Module):
    """Pre-norm self-attention, then an MLP; each is scaled by channel before it is added."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs):
        width, norm = config.width, {"scale": True, "bias": True, "eps": config.norm_eps}
        options = {"init": _INIT, "dtype": config.dtype, "rngs": rngs, "bias": True}
        self.head_dim, self.implementation = config.head_dim, config.attention
        self.norm1 = layers.LayerNorm(width, **norm)
        self.qkv = layers.Linear(width, 3 * width, **options)
        self.out = layers.Linear(width, width, **options)
        self.gamma1 = nnx.Param(jnp.ones(width))
        self.norm2 = layers.LayerNorm(width, **norm)
        self.mlp = layers.MLP(width, config.mlp_ratio, **options)
        self.gamma2 = nnx.Param(jnp.ones(width))

    def __call__(
        self, tokens: Float[Array, "b n d"], rotation: Rotation | None
    ) -> Float[Array, "b n d"]:
        """One layer on float32 tokens; `rotation` turns queries and keys."""
        tokens = tokens + self.gamma1[...] * self._attend(self.norm1(tokens), rotation)
        return tokens + self.gamma2[...] * self.mlp(self.norm2(tokens))

    def _attend(self, tokens: Array, rotation: Rotation | None) -> Array:
        q, k, v = einops.rearrange(
            self.qkv(tokens), "b n (three m c) -> three b n m c", three=3, c=self.head_dim
        )
        if rotation is not None:
            q, k = _rotate(q, rotation), _rotate(k, rotation)
        read = attention(q, k, v, implementation=self.implementation)
        return self.out(einops.rearrange(read, "b n m c -> b n (m c)"))


class Dino(nnx.Module):
    """A vision transformer that gives the features of its blocks; `dino_weights` reads weights."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs):
        width, grid = config.width, config.position_grid
        options = {"init": _INIT, "dtype": config.dtype, "rngs": rngs, "bias": True}
        self.config = config
        self.patches = layers.Linear(3 * config.patch_size**2, width, **options)
        self.special = nnx.Param(_INIT(rngs.params(), (config.num_special, width)))
        # DINOv2's positions are added to the patches; of the class token's, `special` has the sum.
        self.positions = nnx.Param(_INIT(rngs.params(), (grid, grid, width))) if grid else None
        self.periods = None if grid else nnx.Param(jnp.asarray(rope_periods(config.head_dim)))
        self.blocks = layers.stack_layers(
            lambda _, rngs: DinoBlock(config, rngs=rngs), config.num_layers, rngs
        )

    def block_outputs(
        self, images: Float[Array, "b h w 3"], blocks: Sequence[int]
    ) -> tuple[Float[Array, "b gh gw d"], ...]:
        """Tokens of the patches of images in [0, 1] after some blocks, counted from 1, in float32.

        UserError for blocks that there are not, and sizes that are no multiple of the patch.
        """
        depth, patch = self.config.num_layers, self.config.patch_size
        if not blocks or not all(1 <= block <= depth for block in blocks):
            raise UserError(f"blocks {tuple(blocks)} of a teacher that has 1 to {depth}")
        height, width = images.shape[1:3]
        layers.check_image_size(height, width, patch)
        grid = height // patch, width // patch
        rotation = self._rotation(*grid)
        used = jax.tree.map(lambda stacked: stacked[: max(blocks)], self.blocks)
        _, _, outputs = layers.scan_layers(
            lambda tokens, block: (block(tokens, rotation), None),
            self._tokens(images, *grid),
            used,
            tuple(blocks),
            remat="none",
        )
        return tuple(
            einops.rearrange(x[:, self.config.num_special :], "b (y x) d -> b y x d", x=grid[1])
            for x in outputs
        )

    def features(
        self, images: Float[Array, "b h w 3"], blocks: Sequence[int], grid: tuple[int, int]
    ) -> tuple[Float[Array, "b {grid[0]} {grid[1]} d"], ...]:
        """`block_outputs` of images at `DinoConfig.input_size`, resized to the student's grid."""
        images = resize_bicubic(images, *self.config.input_size(*images.shape[1:3]))
        return tuple(resize_bicubic(x, *grid) for x in self.block_outputs(images, blocks))

    def _tokens(self, images: Array, gh: int, gw: int) -> Float[Array, "b n d"]:
        """Input tokens of the first block."""
        pixels = (images.astype(jnp.float32) - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        pixels = layers.patchify(jnp.expand_dims(pixels, 1), self.config.patch_size)
        patches = self.patches(jnp.squeeze(pixels, 1)).astype(jnp.float32)
        if self.positions is not None:
            positions = resize_bicubic(self.positions[...][None], gh, gw)[0]
            patches = patches + einops.rearrange(positions, "y x d -> (y x) d")
        special = layers.broadcast_scenes(self.special[...], patches)
        return jnp.concatenate([special, patches], axis=1)

    def _rotation(self, gh: int, gw: int) -> Rotation | None:
        """Cosines and sines for each token: rows, columns, and both again; 1 and 0 for special."""
        if self.periods is None:
            return None
        rows, columns = (
            2 * np.pi * (2 * (np.arange(size) + 0.5) / size - 1)[:, None] / self.periods[...]
            for size in (gh, gw)
        )
        angles = [jnp.repeat(rows, gw, axis=0), jnp.tile(columns, (gh, 1))] * 2
        angles = jnp.pad(jnp.concatenate(angles, 1), ((self.config.num_special, 0), (0, 0)))
        return jnp.cos(angles), jnp.sin(angles)


def rope_periods(head_dim: int) -> Float[np.ndarray, "_"]:
    """Periods of DINOv3's rotary positions, in half image sides; one for four channels of a head.

    Hugging Face's program computes them; the authors' files have them, rounded to bfloat16.
    """
    return (100 ** (np.arange(0, head_dim, 4) / head_dim)).astype(np.float32)


def _rotate(x: Float[Array, "b n m c"], rotation: Rotation) -> Float[Array, "b n m c"]:
    """Turns pairs of channels, one of each half."""
    cosine, sine = (part[:, None] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cosine + turned * sine).astype(x.dtype)


def resize_bicubic(
    images: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b {height} {width} c"]:
    """Resizes as `torch.nn.functional.interpolate(mode="bicubic")` does, in float32.

    `jax.image.resize` has another filter (Keys' a is -0.5 there), leaves out what is beyond the
    border, which torch repeats, and antialiases what it shrinks.
    """
    images = images.astype(jnp.float32)
    for axis, size, product in ((1, height, "bhwc,yh->bywc"), (2, width, "bhwc,xw->bhxc")):
        if images.shape[axis] != size:
            matrix = _bicubic_matrix(images.shape[axis], size)
            images = jnp.einsum(product, images, matrix, precision="highest")
    return images


def _bicubic_matrix(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """The weights of the old pixels of a line in each new one."""
    a = -0.75
    source = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(source).astype(int)
    matrix = np.zeros((new, old))
    for pixel in (first - 1, first, first + 1, first + 2):
        x = np.abs(source - pixel)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(matrix, (np.arange(new), pixel.clip(0, old - 1)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)
