"""The photographs as one visitor sees them: frustums in 3D, and the nearest beside the render."""

import dataclasses
import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Gallery, Listed
from lvsm_jax.viewer.viewpoint import Viewpoint

_log = logging.getLogger(__name__)

_IN_USE, _SPARE = (255, 140, 0), (130, 130, 130)
_UPLOADED_IN_USE, _UPLOADED = (0, 190, 255), (0, 110, 160)
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

    def __init__(self, scene: Any, viewpoint: Viewpoint, clicked: Callable[[str], None]):
        self._scene, self._viewpoint, self._clicked = scene, viewpoint, clicked
        self.shown: dict[str, Frustum] = {}  # by name, in the order of the gallery

    def clear(self) -> None:
        """Removes all: the page has another scale, or shows another world."""
        for frustum in self.shown.values():
            frustum.handle.remove()
        self.shown = {}

    def update(self, items: Sequence[Listed]) -> None:
        """Shows these photographs; unchanged frustums stay."""
        wanted = {item.name: item for item in items}
        kept = {name: f for name, f in self.shown.items() if f.listed == wanted.get(name)}
        for name in self.shown.keys() - kept.keys():
            self.shown[name].handle.remove()
        self.shown = {name: kept.get(name) or self._add(item) for name, item in wanted.items()}

    def hide(self, window: geometry.Window, *, all_of_them: bool) -> None:
        """Hides the frustums that the visitor stands in, or all: they would hide the render."""
        for frustum in self.shown.values():
            away = np.linalg.norm(frustum.c2w[:3, 3] - window.c2w[:3, 3])
            visible = bool(away > _CLEAR * frustum.depth) and not all_of_them
            if frustum.handle.visible != visible:
                frustum.handle.visible = visible

    def nearest(self, window: geometry.Window) -> str:
        """Name of the photograph taken nearest to where the visitor stands."""
        poses = np.stack([window.c2w, *(frustum.c2w for frustum in self.shown.values())])
        poses[:, :3, 3] /= self._viewpoint.magnification  # lengths count the same on any page
        return list(self.shown)[geometry.nearest(poses[0], poses[1:])]

    def _add(self, item: Listed) -> Frustum:
        camera, world = item.camera, self._viewpoint.world
        c2w = self._viewpoint.frame.to_page(camera.c2w)
        scale = self._viewpoint.magnification * world.frustum
        fx, fy = camera.fxfycxcy[:2]
        fov, aspect = 2 * np.arctan(camera.height / 2 / fy), camera.width / fx * fy / camera.height
        used, spare = (_IN_USE, _SPARE) if item.owner is None else (_UPLOADED_IN_USE, _UPLOADED)
        handle = self._scene.add_camera_frustum(
            # Names are paths to viser, and photographs may be called anything.
            f"/photographs/{item.name.encode().hex()}",
            fov,
            aspect,
            scale=scale,
            thickness=2.0 if item.in_use else 1.0,
            thickness_units="screen",
            color=used if item.in_use else spare,
            image=world.gallery.picture_in_use(item.name),
            wxyz=geometry.wxyz(c2w),
            position=c2w[:3, 3],
            visible=False,
        )
        handle.on_click(lambda _: self._clicked(item.name))
        return Frustum(item, c2w, geometry.frustum_depth(fov, aspect, scale), handle)


class Beside:
    """Two pictures in the visitor's panel; the executor `loading` decodes the photographs.

    `loaded` is called after a photograph that was asked for is there.
    """

    def __init__(
        self,
        gui: Any,
        gallery: Gallery,
        size: tuple[int, int],
        loading: Executor,
        loaded: Callable[[], None] = lambda: None,
    ):
        grey = np.full((*size, 3), 128, np.uint8)
        self._image = gui.add_image(geometry.side_by_side(grey, grey), jpeg_quality=90)
        self._caption = gui.add_markdown("")
        self._gallery, self._loading, self._loaded = gallery, loading, loaded
        self._lock = threading.Lock()  # of what follows
        self._render, self._photograph, self._wanted, self._name = grey, grey, "", ""
        self._is_loading = self._closed = False
        self._damaged: set[str] = set()

    def show(self, name: str, render: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows a render and, as soon as it is decoded, the photograph of a name."""
        with self._lock:
            self._render, self._wanted = render, name
            self._update()

    def enter(self, gallery: Gallery) -> None:
        """Shows photographs of another gallery."""
        with self._lock:
            self._gallery, self._wanted, self._name = gallery, "", ""
            self._damaged = set()

    def photograph(self, name: str) -> UInt8[np.ndarray, "h w 3"] | None:
        """The photograph of this name, if it is the one that is shown."""
        with self._lock:
            return self._photograph if self._name == name else None

    def close(self) -> None:
        """Stops showing anything."""
        with self._lock:
            self._closed = True

    def _update(self) -> None:
        name = self._wanted
        if name not in self._damaged:
            # Also where it is shown already: another visitor's may have taken its name.
            if self._gallery.at_hand(name):
                self._photograph, self._name = self._gallery.picture(name), name
            elif not self._is_loading:
                self._is_loading = True
                self._loading.submit(self._load, name)
        self._image.image = geometry.side_by_side(self._photograph, self._render)
        caption = f"{code(self._name)}, the nearest photograph, and the render"
        if self._name and self._caption.content != caption:
            self._caption.content = caption

    def _load(self, name: str) -> None:
        try:
            self._gallery.picture(name)
        except Exception as error:  # whatever it is, other photographs are shown after it
            _log.warning("%s", error)
            self._damaged.add(name)
        with self._lock:
            self._is_loading = False
            if self._closed:
                return
            self._update()  # another one may be wanted by now
        self._loaded()


def code(text: str) -> str:
    """Text that Markdown shows letter by letter: names and messages may hold anything."""
    return "`" + re.sub(r"\s", " ", text.replace("`", "'")) + "`"
