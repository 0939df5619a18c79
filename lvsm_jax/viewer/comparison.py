"""How good the renders are: a photograph laid over the render from where it was taken."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.photographs import Beside, Frustums
from lvsm_jax.viewer.viewpoint import Viewpoint
from lvsm_jax.viewer.worlds import Request

_HELP = (
    "Go to a photograph and move the slider: it lies over the render from there. One that is not "
    "in use is new to the model."
)


class Comparison:
    """A slider between photograph and render, their distance, and both beside each other.

    `redraw` shows the newest render again, with what has changed here.
    """

    def __init__(
        self,
        gui: Any,
        viewpoint: Viewpoint,
        frustums: Frustums,
        size: tuple[int, int],
        loading: Executor,
        redraw: Callable[[], None],
    ):
        self._viewpoint, self._frustums, self._redraw = viewpoint, frustums, redraw
        self._help = gui.add_markdown(_HELP)
        hint = "0: the render alone; 100: the photograph alone"
        self._share = gui.add_slider("Photograph %", 0, 100, 1, 0, hint=hint)
        self.next = gui.add_button("Next held-out view", hint="a photograph that is not in use")
        gallery = viewpoint.world.gallery
        self._beside = Beside(gui, gallery, size, loading, redraw)
        self._share.on_update(lambda _: self._redraw())
        self._distance: tuple[Any, str] | None = None  # of the last render with its photograph
        self.covers = False  # whether a photograph lies over the last render

    def enter(self) -> None:
        """Compares with the photographs of the world that the visitor is in now."""
        self._beside.enter(self._viewpoint.world.gallery)

    def close(self) -> None:
        """Shows nothing any more."""
        self._beside.close()

    def go_to_next(self) -> None:
        """To the next photograph not in use after the one where the visitor is, half laid over."""
        items = self._viewpoint.world.gallery.listing()
        held_out = [item for item in items if not item.in_use]
        if not held_out:
            raise UserError("all photographs are in use: remove one, and compare with that")
        here = self._viewpoint.request
        names = [item.name for item in items]
        at = names.index(here.photograph) if here and here.photograph in names else -1
        later = [item for item in held_out if names.index(item.name) > at]
        chosen = (later or held_out)[0]
        if self._share.value == 0:
            self._share.value = 50
        self._viewpoint.go(chosen.photograph.camera, chosen.name)

    def over(self, request: Request, picture: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
        """The render, with the photograph that was taken there over a part of it."""
        name = request.photograph or self._frustums.nearest(request.window)
        self._beside.show(name, picture)
        photograph = None if request.photograph is None else self._beside.photograph(name)
        share = geometry.bounded(self._share.value, 0.0, 100.0) / 100
        self.covers = photograph is not None and share > 0
        if photograph is None:
            self._help.content = _HELP
            return picture
        if picture.shape == photograph.shape:
            self._help.content = self._score(name, photograph, picture)
        return geometry.wipe(photograph, picture, share)

    def _score(self, name: str, photograph: np.ndarray, picture: np.ndarray) -> str:
        if self._distance is None or self._distance[0] is not picture:
            pictures = (shown[None].astype(np.float32) / 255 for shown in (photograph, picture))
            self._distance = picture, f"{float(psnr(*pictures)[0]):.1f} dB PSNR"
        gallery = self._viewpoint.world.gallery
        known = "an input, which the model sees" if name in gallery.in_use else "held out"
        return f"**{self._distance[1]}** from the photograph, {known}"
