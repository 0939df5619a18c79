"""What a session keeps of its views for a GS-LRM: their pictures, and the Gaussians of all.

Each view's Gaussians depend on all views, so that nothing of one can be kept when another comes.
The model runs once after a change, when the Gaussians are first asked for; any number of renders
then costs no network. Each number of views is a program of its own.

The functions are those of `view_cache`, for one scene.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lvsm_jax.common.errors import UserError
from lvsm_jax.gaussians.gaussians import Gaussians
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.gs_lrm import GSLRM

_FLOATS = 14  # of a Gaussian


@dataclasses.dataclass
class Room:
    """Pairs of a Gaussian and a tile that renders have room for; it grows as they need."""

    pairs_per_gaussian: float


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianViews:
    """Views of a scene, numbered from 0, and their Gaussians."""

    model: GSLRM
    max_views: int
    image_size: tuple[int, int]
    room: Room
    images: tuple[Float[np.ndarray, "1 1 h w 3"], ...] = ()
    cameras: tuple[Cameras, ...] = ()  # `[1, 1]` each

    @functools.cached_property
    def gaussians(self) -> Gaussians:
        """The Gaussians `[1, n]` of all views, in the model's frame."""
        images = np.concatenate(self.images, axis=1)
        c2w, fxfycxcy = (
            np.concatenate([getattr(camera, name) for camera in self.cameras], axis=1)
            for name in ("c2w", "fxfycxcy")
        )
        return _encode(self.model, images, Cameras(c2w, fxfycxcy))

    @property
    def nbytes(self) -> int:
        """Bytes of the Gaussians of all views that there is room for."""
        height, width = self.image_size
        return 4 * _FLOATS * self.max_views * height * width

    def delete(self) -> None:
        """Frees the Gaussians."""
        self.__dict__.pop("gaussians", None)


def init_cache(
    model: GSLRM, batch: int, max_views: int, image_size: tuple[int, int]
) -> GaussianViews:
    """No views of one scene."""
    if batch != 1:
        raise UserError(f"views of {batch} scenes, expected 1: Gaussians are kept of one")
    return GaussianViews(model, max_views, image_size, Room(model.config.pairs_per_gaussian))


def add_views(
    model: GSLRM, cache: GaussianViews, images: Float[np.ndarray, "1 1 h w 3"], cameras: Cameras
) -> GaussianViews:
    """The views with one more."""
    return dataclasses.replace(
        cache, images=(*cache.images, images), cameras=(*cache.cameras, cameras)
    )


def replace_view(
    model: GSLRM,
    cache: GaussianViews,
    number: int,
    images: Float[np.ndarray, "1 1 h w 3"],
    cameras: Cameras,
) -> GaussianViews:
    """The views with another in a place."""

    def put(old: tuple[Any, ...], new: Any) -> tuple[Any, ...]:
        return (*old[:number], new, *old[number + 1 :])

    return dataclasses.replace(
        cache, images=put(cache.images, images), cameras=put(cache.cameras, cameras)
    )


def remove_views(cache: GaussianViews, number: int) -> GaussianViews:
    """The views without one, whose number the last takes."""

    def without(views: tuple[Any, ...]) -> tuple[Any, ...]:
        kept, last = views[:-1], views[-1:]
        return kept if number == len(kept) else (*kept[:number], *last, *kept[number + 1 :])

    return dataclasses.replace(cache, images=without(cache.images), cameras=without(cache.cameras))


def render(
    model: GSLRM,
    cache: GaussianViews,
    cameras: Cameras,
    size: tuple[int, int],
    *,
    targets_at_once: int,
) -> Float[Array, "1 k h w 3"]:
    """Renders of the cameras `[1, k]`, clipped to [0, 1].

    Where the rasteriser has too little room for all pairs it takes more, and renders again.
    """
    while True:
        room = cache.room.pairs_per_gaussian
        renders, overflow = _splat(model, cache.gaussians, cameras, *size, room)
        if not float(overflow.max()):
            return jnp.clip(renders, 0, 1)
        cache.room.pairs_per_gaussian = 2 * room


@jax.jit
def _encode(model: GSLRM, images: Float[Array, "1 v h w 3"], cameras: Cameras) -> Gaussians:
    return model.encode(jnp.asarray(images), cameras)


@functools.partial(jax.jit, static_argnames=("height", "width", "room"))
def _splat(
    model: GSLRM, gaussians: Gaussians, cameras: Cameras, height: int, width: int, room: float
) -> tuple[Float[Array, "1 k {height} {width} 3"], Float[Array, "1 k"]]:
    return model.splat(gaussians, cameras, height, width, room)
