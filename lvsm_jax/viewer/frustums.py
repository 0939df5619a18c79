"""The photographs in 3D, as one visitor sees them: camera frustums to click."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Gallery, Listed
from lvsm_jax.viewer.geometry import PageFrame, Window

_IN_USE, _UPLOADED, _SPARE = (255, 140, 0), (0, 160, 230), (130, 130, 130)
_CLEAR = 1.5  # in depths of a frustum: one that is nearer is hidden


@dataclasses.dataclass(frozen=True)
class Frustum:
    """A photograph in 3D, with the pose of its camera and the frustum's depth on the page."""

    listed: Listed
    c2w: Float64[np.ndarray, "4 4"]
    depth: float
    handle: Any


class Frustums:
    """Frustums of all photographs in the gallery, those in use with their picture.

    `scene` is viser's, of the visitor; a click calls `clicked` with the name of the photograph.
    Not thread-safe.
    """

    def __init__(
        self,
        scene: Any,
        gallery: Gallery,
        frame: PageFrame,
        scale: float,
        clicked: Callable[[str], None],
    ):
        self._scene, self._gallery, self._frame, self._scale = scene, gallery, frame, scale
        self._clicked = clicked
        self.shown: dict[str, Frustum] = {}  # by name, in the order of the gallery

    def update(self, items: Sequence[Listed]) -> None:
        """Shows these photographs; unchanged frustums stay."""
        wanted = {item.name: item for item in items}
        kept = {name: f for name, f in self.shown.items() if f.listed == wanted.get(name)}
        for name in self.shown.keys() - kept.keys():
            self.shown[name].handle.remove()
        self.shown = {name: kept.get(name) or self._add(item) for name, item in wanted.items()}

    def hide(self, window: Window, *, all_of_them: bool) -> None:
        """Hides the frustums that the visitor stands in, or all: they would hide the render."""
        for frustum in self.shown.values():
            away = np.linalg.norm(frustum.c2w[:3, 3] - window.c2w[:3, 3])
            visible = bool(away > _CLEAR * frustum.depth) and not all_of_them
            if frustum.handle.visible != visible:
                frustum.handle.visible = visible

    def nearest(self, window: Window) -> str | None:
        """Name of the photograph taken nearest to where the visitor stands, if there is any."""
        if not self.shown:
            return None
        poses = np.stack([frustum.c2w for frustum in self.shown.values()])
        return list(self.shown)[geometry.nearest(window.c2w, poses)]

    def _add(self, item: Listed) -> Frustum:
        camera, c2w = item.camera, self._frame.to_page(item.camera.c2w)
        fx, fy = camera.fxfycxcy[:2]
        fov, aspect = 2 * np.arctan(camera.height / 2 / fy), camera.width / fx * fy / camera.height
        spare = _SPARE if item.owner is None else _UPLOADED
        handle = self._scene.add_camera_frustum(
            # Names are paths to viser, and photographs may be called anything.
            f"/photographs/{item.name.encode().hex()}",
            fov,
            aspect,
            scale=self._scale,
            thickness=2.0 if item.in_use else 1.0,
            thickness_units="screen",
            color=_IN_USE if item.in_use else spare,
            image=self._gallery.picture_in_use(item.name),
            wxyz=geometry.wxyz(c2w),
            position=c2w[:3, 3],
        )
        handle.on_click(lambda _: self._clicked(item.name))
        return Frustum(item, c2w, geometry.frustum_depth(fov, aspect, self._scale), handle)
