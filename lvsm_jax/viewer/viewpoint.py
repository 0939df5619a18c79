"""Where a visitor stands, and how they move: viser's camera of their browser, in a world."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.worlds import Request, World

_log = logging.getLogger(__name__)

_VISERS_SPEED = 2.0  # units of the page a second, with W A S D; viser has no other
_SAME = 1e-3  # of a pose on the page, and in radians: what float32 leaves of a pose
WALKING = 0.5  # at first, in extents of the scene's cameras a second


def frame_at(world: World, speed: float) -> geometry.PageFrame:
    """The page on which viser's keys walk at a speed: a larger one for slower steps."""
    return world.frame.magnified(_VISERS_SPEED / speed)


class Viewpoint:
    """A visitor's place in a world, on a page that is as large as they walk slowly.

    `client` is viser's, `size` the height and width of the pictures that are rendered.
    """

    def __init__(self, client: Any, world: World, size: tuple[int, int]):
        self._camera, self._client, self._size = client.camera, client, size
        self._speed = WALKING
        self.enter(world)

    def enter(self, world: World) -> None:
        """Moves to another world; where there, `go` says."""
        self.world, self.frame = world, frame_at(world, self._speed)
        self._window: geometry.Window | None = None
        # The photograph that the visitor went to last, its camera, and the window that shows it.
        self._goal: tuple[str, PosedCamera, Float64[np.ndarray, "4 4"], float] | None = None

    @property
    def magnification(self) -> float:
        """Sizes on this page, to those in the frame of the world."""
        return self.frame.scale / self.world.frame.scale

    @property
    def request(self) -> Request | None:
        """For what the window showed when `look` was last called; None before."""
        if (window := self._window) is None:
            return None
        request = Request(self.world, self.frame, window)
        if self._goal is None:
            return request
        name, camera, c2w, fov = self._goal
        there = np.allclose(c2w, window.c2w, atol=_SAME) and abs(fov - window.fov) < _SAME
        return dataclasses.replace(request, photograph=name, exact=camera) if there else request

    def look(self) -> Request | None:
        """What the browser's window shows now; None where it reports what is no camera."""
        camera = self._camera
        try:
            pose = np.asarray(camera.wxyz, np.float64), np.asarray(camera.position, np.float64)
            self._window = geometry.Window.of(*pose, camera.fov, camera.aspect)
        except (ValueError, ZeroDivisionError) as error:
            _log.warning("visitor %s: %s", self._client.client_id, error)
            return None
        return self.request

    def go(self, camera: PosedCamera, photograph: str | None = None) -> None:
        """Puts the window where a camera is, that of a photograph where it has a name.

        The browser then reports where it stands.
        """
        fov = geometry.field_of_view(camera, self._size, self._camera.aspect)
        self._goal = None
        if photograph is not None:
            self._goal = photograph, camera, self.frame.to_page(camera.c2w), fov
        self._stand(camera.c2w, fov)

    def go_to_start(self) -> None:
        """To where visitors of this world stand first."""
        self.go(self.world.start, self.world.first)

    @property
    def fov(self) -> float | None:
        """Vertical field of view of the render, in degrees."""
        return self._window and math.degrees(self._window.picture_fov(self._size))

    def set_fov(self, degrees: float) -> None:
        """Sets the render's vertical field of view."""
        fov = geometry.window_fov(math.radians(degrees), self._size, self._camera.aspect)
        self._camera.fov = fov

    def walk_at(self, speed: float) -> None:
        """Sets how many extents of the scene's cameras a second W A S D go; one stays in place."""
        here = self.look()
        self._speed, self.frame = speed, frame_at(self.world, speed)
        self._goal = None
        if here is not None:
            self._stand(here.frame.to_world(here.window.c2w), here.window.fov)

    def _stand(self, world_pose: Float64[np.ndarray, "4 4"], fov: float) -> None:
        c2w = self.frame.to_page(world_pose)
        with self._client.atomic():
            self._camera.up_direction = geometry.upright(c2w)
            self._camera.position = c2w[:3, 3]
            self._camera.look_at = c2w[:3, 3] + self.frame.distance * c2w[:3, 2]
            self._camera.fov = fov
