"""The photographs in 3D, as one visitor sees them: camera frustums to click."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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

    Not thread-safe.

    Args:
        scene: viser's, of the visitor.
        gallery: with the pictures.
        frame: from the world to the page.
        scale: of the frustums, on the page.
        clicked: called with the name of a photograph.
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
        self._shown: dict[str, Frustum] = {}

    @property
    def shown(self) -> Mapping[str, Frustum]:
        """Frustums by name, in the order of the gallery."""
        return self._shown

    def update(self, items: Sequence[Listed]) -> None:
        """Shows these photographs; unchanged frustums stay."""
        kept = {item.name: item for item in items if self._is_shown(item)}
        for name, frustum in self._shown.items():
            if name not in kept:
                frustum.handle.remove()
        self._shown = {
            item.name: self._shown[item.name] if item.name in kept else self._add(item)
            for item in items
        }

    def hide(self, window: Window, *, all_of_them: bool) -> None:
        """Hides the frustums that the visitor stands in, or all: they would hide the render."""
        for frustum in self._shown.values():
            away = np.linalg.norm(frustum.c2w[:3, 3] - window.c2w[:3, 3])
            visible = bool(away > _CLEAR * frustum.depth) and not all_of_them
            if frustum.handle.visible != visible:
                frustum.handle.visible = visible

    def nearest(self, window: Window) -> str | None:
        """Name of the photograph taken nearest to where the visitor stands, if there is any."""
        if not self._shown:
            return None
        poses = np.stack([frustum.c2w for frustum in self._shown.values()])
        return list(self._shown)[geometry.nearest(window.c2w, poses)]

    def _is_shown(self, item: Listed) -> bool:
        there = self._shown.get(item.name)
        return there is not None and there.listed == item

    def _add(self, item: Listed) -> Frustum:
        c2w, camera = self._frame.to_page(item.camera.c2w), item.camera
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
