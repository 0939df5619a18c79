"""GS-LRM (arXiv 2404.19702): the pixels of the input views become 3D Gaussians, which are rendered.

What it predicts is a scene that other programs can show, and rendering costs no network. What no
input sees is not there: it shows the background.

Letters: `b` scenes, `v` input views, `t` target views, `n` Gaussians, `d` width.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lvsm_jax.common.checks import check_choice, check_field
from lvsm_jax.common.errors import UserError
from lvsm_jax.gaussians.gaussians import SH_DEGREE_0, Gaussians
from lvsm_jax.gaussians.rasterize import capacity_for, rasterize
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel, computation
from lvsm_jax.models.cameras import Cameras, rays
from lvsm_jax.models.layers import LayerNorm, Linear, Transformer, recomputed, unpatchify
from lvsm_jax.models.lvsm import all_tokens
from lvsm_jax.parallel.mesh import axes_of, per_device

CHANNELS = 12  # of a pixel: distance 1, colour 3, scale 3, rotation 4, opacity 1
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class GSLRMConfig(ModelConfig):
    """Sizes of the model and how it is computed; the defaults are the published one of scenes.

    Lengths are in the unit of the scene frame.

    Attributes:
        qk_norm: normalise queries and keys, as LVSM does; of it the paper says nothing.
        near: distance along a pixel's ray that its Gaussian has at least.
        far: and at most.
        distance_space: what the network's share between near and far is of: "linear", as published,
            of the distance; "inverse" of its reciprocal, in which a step moves as many pixels
            wherever it is. That needs a `near` above 0.
        reach: largest |coordinate| of a centre, to which it is clipped; 0 for none.
        distance_bias: added to the raw distance. 0, as published, starts in the middle between near
            and far; −5.3 starts at a 200th, so at 2.5 of 500.
        scale_unit: what scales count: "scene" units, as published, or each Gaussian's "pixel", as
            large as its own view has it at its distance.
        scale_bias: added to the logarithm of the scales. −2.3, as published, starts at 0.1; −4.6 at
            0.01, which a few tiles hold.
        max_scale: largest scale, in that unit.
        residual_colors: whether colours are predicted as a difference from the pixel's own, and not
            from grey, as published.
        opacity_bias: added to the raw opacity; −2 starts at 0.12.
        background: grey level, 0 to 1, of what no Gaussian covers.
        tile_size: side of the rasteriser's tiles in pixels. No render depends on it.
        pairs_per_gaussian: room of the rasteriser: pairs of a Gaussian and a tile for each
            Gaussian of a scene. What does not fit is reported: `overflow` in training, and renders
            that are NaN elsewhere.
    """

    num_layers: int = 24
    width: int = 1024
    qk_norm: bool = True
    near: float = 0.0
    far: float = 500.0
    distance_space: str = "linear"
    reach: float = 0.0
    distance_bias: float = 0.0
    scale_unit: str = "scene"
    scale_bias: float = -2.3
    max_scale: float = 0.3
    residual_colors: bool = False
    opacity_bias: float = -2.0
    background: float = 1.0
    tile_size: int = computation(16)
    pairs_per_gaussian: float = computation(4.0)

    def __post_init__(self):
        super().__post_init__()
        if self.time_channel:
            raise UserError("model.time_channel is True, but the Gaussians of GSLRM do not move")
        check_choice("model.distance_space", self.distance_space, ("linear", "inverse"))
        check_choice("model.scale_unit", self.scale_unit, ("scene", "pixel"))
        inverse = self.distance_space == "inverse"
        check_field("model", self, "near", self.near > 0 or not inverse, "above 0 where inverse")
        for field, fits, expected in (
            ("near", self.near >= 0, "at least 0"),
            ("far", self.near < self.far < math.inf, f"more than model.near {self.near}"),
            ("reach", self.reach >= 0, "at least 0"),
            ("max_scale", 0 < self.max_scale < math.inf, "above 0"),
            ("background", 0 <= self.background <= 1, "0 to 1"),
            ("tile_size", self.tile_size >= 1, "at least 1"),
            ("pairs_per_gaussian", self.pairs_per_gaussian > 0, "above 0"),
        ):
            check_field("model", self, field, fits, expected)


class Splats(NamedTuple):
    """What the model renders, with what training looks at besides.

    Attributes:
        images: `[b, t, h, w, 3]`, not clipped.
        distances: `[b, v, h, w]` of the Gaussians from their cameras.
        overflow: `[b, t]`, share of the pairs of a Gaussian and a tile that had no room: where it
            is not 0, the render lacks the farthest Gaussians.
    """

    images: Float[Array, "b t h w 3"]
    distances: Float[Array, "b v h w"]
    overflow: Float[Array, "b t"]


class GSLRM(ViewSynthesisModel):
    """One sequence of all input views' tokens; each becomes the Gaussians of its pixels."""

    config: GSLRMConfig
    stacks: ClassVar[tuple[str, ...]] = ("transformer",)
    has_target_tokens: ClassVar[bool] = False

    def __init__(self, config: GSLRMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        init = nnx.initializers.normal(0.02)  # in all layers, unlike LVSM
        self.norm = LayerNorm(config.width, scale=True)
        self.transformer = Transformer(config, config.num_layers, init_of=lambda _: init, rngs=rngs)
        self.head_norm = LayerNorm(config.width, scale=True)
        outputs = CHANNELS * config.patch_size**2
        # In float32 whatever the dtype: places of Gaussians are more exact than bfloat16.
        self.head = Linear(config.width, outputs, init=init, dtype="float32", rngs=rngs)

    def encode(self, images: Float[Array, "b v h w 3"], cameras: Cameras) -> Gaussians:
        """The Gaussians `[b, n]` of all pixels: n = v·h·w, views after each other, row by row."""
        return self.gaussians_and_distances(images, cameras)[0]

    def gaussians_and_distances(
        self, images: Float[Array, "b v h w 3"], cameras: Cameras
    ) -> tuple[Gaussians, Float[Array, "b v h w"]]:
        """What `encode` returns, and how far along its ray each pixel's Gaussian is."""
        config, (views, height, width) = self.config, images.shape[1:4]
        tokens = self.transformer(self.norm(all_tokens(self, images, cameras)))
        raw = self.head(self.head_norm(tokens.astype(jnp.float32)))
        raw = einops.rearrange(raw, "b (v n) c -> b v n c", v=views)
        raw = unpatchify(raw, config.patch_size, height, width)
        distances = self._distances(raw[..., 0])
        origins, directions = rays(cameras, height, width)
        means = origins[:, :, None, None] + distances[..., None] * directions
        if config.reach:
            means = jnp.clip(means, -config.reach, config.reach)
        logs = jnp.minimum(raw[..., 4:7] + config.scale_bias, math.log(config.max_scale))
        units = pixel_sizes(cameras, directions, distances) if config.scale_unit == "pixel" else 1.0
        own = images if config.residual_colors else 0.5
        turns = raw[..., 7:11]
        squared = jnp.square(turns).sum(-1, keepdims=True)
        gaussians = Gaussians(
            means=means,
            quaternions=turns * jax.lax.rsqrt(jnp.maximum(squared, _TINY**2)),
            scales=jnp.exp(logs) * units,
            opacities=jax.nn.sigmoid(raw[..., 11] + config.opacity_bias),
            colors=jnp.maximum(own + SH_DEGREE_0 * raw[..., 1:4], 0),
        )
        return jax.tree.map(_in_a_row, gaussians), distances

    def _distances(self, raw: Float[Array, "b v h w"]) -> Float[Array, "b v h w"]:
        """Distances along the rays, between near and far."""
        config = self.config
        share = jax.nn.sigmoid(raw + config.distance_bias)
        if config.distance_space == "inverse":
            return 1 / ((1 - share) / config.near + share / config.far)
        return (1 - share) * config.near + share * config.far

    def decode(
        self, memory: Gaussians, cameras: Cameras, height: int, width: int
    ) -> Float[Array, "b t {height} {width} 3"]:
        """Renders the cameras from what `encode` returned, clipped to [0, 1].

        A render is NaN, never incomplete, where the rasteriser has no room for all pairs.
        """
        images, overflow = self.splat(memory, cameras, height, width)
        images = jnp.clip(images, 0, 1)
        return jnp.where(overflow[..., None, None, None] > 0, jnp.nan, images)

    def render_and_report(
        self, images: Float[Array, "b v h w 3"], inputs: Cameras, targets: Cameras
    ) -> Splats:
        """What the call renders, as training needs it: neither clipped nor NaN."""
        gaussians, distances = self.gaussians_and_distances(images, inputs)
        renders, overflow = self.splat(gaussians, targets, *images.shape[2:4])
        return Splats(renders, distances, overflow)

    def splat(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        height: int,
        width: int,
        pairs_per_gaussian: float | None = None,
    ) -> tuple[Float[Array, "b t {height} {width} 3"], Float[Array, "b t"]]:
        """Renders of Gaussians on the background, and of each `Splats.overflow`."""
        config = self.config
        room = config.pairs_per_gaussian if pairs_per_gaussian is None else pairs_per_gaussian
        capacity = capacity_for(gaussians.means.shape[1], room)
        size = {"height": height, "width": width, "tile": config.tile_size, "capacity": capacity}

        def one_view(gaussians: Gaussians, camera: tuple[Array, Array]) -> tuple[Array, Array]:
            raster = rasterize(gaussians, *camera, **size)
            image = raster.features + (1 - raster.alpha) * config.background
            lost = jnp.maximum(raster.pairs - capacity, 0) / jnp.maximum(raster.pairs, 1)
            return image, lost.astype(jnp.float32)

        def own(gaussians: Gaussians, cameras: tuple[Array, Array]) -> tuple[Array, Array]:
            # One view after the other: the rasteriser's memory is that of one.
            view = recomputed(one_view, config.remat, prevent_cse=False)

            def one_scene(scene: tuple[Gaussians, tuple]) -> tuple[Array, Array]:
                return jax.lax.map(lambda camera: view(scene[0], camera), scene[1])

            return jax.lax.map(one_scene, (gaussians, cameras))

        scenes = P(axes_of(gaussians.means)[0])
        posed = jnp.asarray(cameras.c2w), jnp.asarray(cameras.fxfycxcy)
        return per_device(own, (scenes, scenes), (scenes, scenes))(gaussians, posed)


def pixel_sizes(
    cameras: Cameras, directions: Float[Array, "b v h w 3"], distances: Float[Array, "b v h w"]
) -> Float[Array, "b v h w 1"]:
    """How long a pixel's side is at these distances along its ray."""
    ahead = jnp.asarray(cameras.c2w)[..., None, None, :3, 2]
    focal = jnp.asarray(cameras.fxfycxcy)[..., None, None, :2].mean(-1)
    return (distances * (directions * ahead).sum(-1) / focal)[..., None]


def _in_a_row(x: Float[Array, "b v h w *c"]) -> Float[Array, "b n *c"]:
    """All pixels of all views after each other."""
    # One dimension is merged at a time: JAX infers the sharding of such reshapes only.
    x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
