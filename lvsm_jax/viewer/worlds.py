"""What visitors walk in: the scene that is served, and places of photographs that they bring.

Photographs whose cameras were found anew, or stand far away, are of another world than the scene's:
nothing relates the two, so a model must not see them together. They become a place of their own,
with a session of its own, which only the visitor who brought them sees.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8

from lvsm_jax.common.errors import UserError
from lvsm_jax.programs.scene_options import INPUTS
from lvsm_jax.rendering.session import Session
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import ScenePhotograph
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Gallery
from lvsm_jax.viewer.renderer import Renderer

_FAR = 10.0  # from the nearest camera of the scene, in extents of its cameras
_MOST_PLACES = 4  # of all visitors together: each takes memory for a whole cache


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Photographs in one frame, and the session that renders from them."""

    name: str
    session: Session
    gallery: Gallery
    frame: geometry.PageFrame  # from its cameras' world to the page
    frustum: float  # size of frustums on the page
    start: PosedCamera  # where visitors stand first
    first: str | None  # name of the photograph that was taken there

    @classmethod
    def of(cls, name: str, session: Session, gallery: Gallery, start: PosedCamera) -> "World":
        """The world of a gallery's photographs."""
        items = gallery.listing()
        cameras = [item.camera for item in items]
        frame = geometry.PageFrame.fit(cameras)
        positions = frame.to_page(np.stack([camera.c2w for camera in cameras]))[:, :3, 3]
        there = [i.name for i in items if np.array_equal(i.camera.c2w, start.c2w)]
        frustum, first = geometry.frustum_scale(positions), there[0] if there else None
        return cls(name, session, gallery, frame, frustum, start, first)

    def is_far(self, cameras: Sequence[PosedCamera]) -> bool:
        """Whether one of these cameras stands so far from the scene's that it sees another."""
        there, new = (
            self.frame.to_page(np.stack([camera.c2w for camera in some]))[:, :3, 3]
            for some in ([item.camera for item in self.gallery.listing()], cameras)
        )
        away = np.linalg.norm(new[:, None] - there, axis=-1).min(1).max()
        extent = np.linalg.norm(there - there.mean(0), axis=1).max()
        # Cameras in one place have no extent to measure by.
        return bool(extent > 0 and away > _FAR * extent)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A render that a visitor asks for: of what their window shows in a world."""

    world: World
    frame: geometry.PageFrame  # of the visitor's page, which may be a magnified one
    window: geometry.Window
    # Where the window stands just where a photograph was taken: that, and its camera, which may
    # have a principal point off the middle and pixels that are not square, as no window has.
    photograph: str | None = None
    exact: PosedCamera | None = None

    def render(self, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        """Renders a picture of this height and width; raises as `Session.render`."""
        height, width = size
        return self.world.session.render(self.camera(size), height=height, width=width)

    def camera(self, size: tuple[int, int]) -> PosedCamera:
        """The camera of that picture."""
        if self.exact is not None:
            return self.exact.cropped_to(*size)
        return self.window.camera(self.frame, size)


class Places:
    """The worlds that visitors open beside the scene, each with a copy of its session."""

    def __init__(self, scene: World, size: tuple[int, int]):
        self._scene, self._size = scene, size
        self._open: list[World] = []
        self._lock = threading.Lock()

    def open(self, name: str, photographs: Sequence[ScenePhotograph]) -> World:
        """A world of these photographs, of which some are in use, evenly spaced in their order.

        Raises UserError where too many places are open, or a photograph cannot be used.
        """
        with self._lock:
            if len(self._open) >= _MOST_PLACES:
                raise UserError(
                    f"visitors have {_MOST_PLACES} places of their own open, and there is room for "
                    "no more: try again when one has left"
                )
            session = self._scene.session.empty_copy()
            try:
                most = self._scene.gallery.max_views
                count = min(INPUTS, most, len(photographs))
                spaced = np.linspace(0, len(photographs) - 1, count).round().astype(int)
                inputs = [photographs[i] for i in spaced]
                session.add([photograph.load() for photograph in inputs])
                gallery = Gallery(session, photographs, self._size, most)
                world = World.of(name, session, gallery, inputs[count // 2].camera)
            except BaseException:
                session.close()
                raise
            self._open.append(world)
            return world

    def close(self, world: World) -> None:
        """Frees a world, if it is open."""
        with self._lock:
            if world not in self._open:
                return
            self._open.remove(world)
        world.session.close()


@dataclasses.dataclass(frozen=True)
class Page:
    """What all visitors share."""

    scene: World
    places: Places
    renderer: Renderer  # takes `Request`s
    sizes: tuple[tuple[int, int], tuple[int, int]]  # height and width of coarse and full renders
    loading: ThreadPoolExecutor  # decodes photographs to show beside renders
    working: threading.Semaphore  # held by the one long job that runs, of all visitors
    memory: Mapping[str, int]  # of the cache, see `Session.memory`
    visitors: Callable[[], int]  # returns their number

    @property
    def frame(self) -> geometry.PageFrame:
        """Of the scene."""
        return self.scene.frame

    @property
    def gallery(self) -> Gallery:
        """Of the scene."""
        return self.scene.gallery

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of full renders."""
        return self.sizes[1]
