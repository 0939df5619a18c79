"""The scene that a GS-LRM makes of photographs: Gaussians, which are rendered and taken away."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lvsm_jax.common.errors import UserError
from lvsm_jax.gaussians.gaussians import Gaussians
from lvsm_jax.gaussians.ply import move
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.gs_lrm import GSLRM
from lvsm_jax.rendering.session import View, model_cameras, model_images
from lvsm_jax.scenes.photograph import Photograph, PosedCamera
from lvsm_jax.scenes.scene_frame import SceneFrame

_AT_ONCE = 8  # cameras of a path that are rendered together


class GaussianScene:
    """Renders one scene from photographs that are all there from the start.

    As for a `Session`, photographs are resized to cover the model's size and their middle is cut
    out; their cameras are in any one world frame and unit, and fix the frame in which the model
    sees the scene. The model runs once. The rasteriser takes as much room as the pairs of Gaussians
    and tiles need: none is left out.

    Args:
        model: a GSLRM.
        photographs: one or more.
        image_height: of the pictures that the model sees, in pixels.
        image_width: the same.
        scale: units of the model a unit of the world, if the photographs are not to fix it.

    Raises:
        UserError: another model, no photograph, or what the model cannot see.
    """

    def __init__(
        self,
        model: ViewSynthesisModel,
        photographs: Sequence[Photograph],
        *,
        image_height: int,
        image_width: int,
        scale: float | None = None,
    ):
        if not isinstance(model, GSLRM):
            raise UserError(f"{type(model).__name__} makes no Gaussians; GSLRM does")
        size = image_height, image_width
        self._model, self._room = model, model.config.pairs_per_gaussian
        cameras = [photograph.camera for photograph in photographs]
        self.frame = SceneFrame.fit(np.stack([x.c2w for x in cameras]), scale=scale)
        views = [View(x.camera, x.cropped_to(*size)) for x in photographs]
        names = [x.name or f"view-{i}" for i, x in enumerate(photographs)]
        self.views: dict[str, View] = dict(zip(names, views, strict=True))
        images = np.concatenate([model_images(view) for view in views], axis=1)
        self._encoded = _encode(model, images, model_cameras(self.frame, cameras, size))

    def render_path(
        self, cameras: Sequence[PosedCamera], *, height: int, width: int
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Renders what several cameras see, one after the other, as `Session.render_path` does."""
        for start in range(0, len(cameras), _AT_ONCE):
            group = list(cameras[start : start + _AT_ONCE])
            # Another number would be compiled anew.
            filled = group + group[-1:] * (_AT_ONCE - len(group))
            renders = self._render(
                model_cameras(self.frame, filled, (height, width)), height, width
            )
            yield from renders[: len(group)]

    def _render(
        self, cameras: Cameras, height: int, width: int
    ) -> UInt8[np.ndarray, "k {height} {width} 3"]:
        while True:
            renders, overflow = _splat(
                self._model, self._encoded, cameras, height, width, self._room
            )
            if not float(overflow.max()):
                break
            self._room *= 2
        renders = np.asarray(renders[0])
        if not np.isfinite(renders).all():
            raise UserError("the render is not finite: the model's weights are damaged")
        return np.rint(np.clip(renders, 0, 1) * 255).astype(np.uint8)

    @property
    def gaussians(self) -> Gaussians:
        """The Gaussians `[n]` in the world of the photographs' cameras, as NumPy arrays."""
        scene = jax.tree.map(lambda x: np.asarray(x[0]), self._encoded)
        back = np.linalg.inv(self.frame.world_to_scene)
        return move(scene, back[:3, :3], back[:3, 3], 1 / self.frame.scale)


@jax.jit
def _encode(model: GSLRM, images: Float[Array, "1 v h w 3"], cameras: Cameras) -> Gaussians:
    return model.encode(jnp.asarray(images), cameras)


@functools.partial(jax.jit, static_argnames=("height", "width", "room"))
def _splat(
    model: GSLRM, gaussians: Gaussians, cameras: Cameras, height: int, width: int, room: float
) -> tuple[Float[Array, "1 k {height} {width} 3"], Float[Array, "1 k"]]:
    return model.splat(gaussians, cameras, height, width, room)
