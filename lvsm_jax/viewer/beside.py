"""The photograph nearest to a visitor, beside the render."""

import logging
import re
import threading
from concurrent.futures import Executor
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Gallery

_log = logging.getLogger(__name__)


class Beside:
    """Two pictures in the visitor's panel; the executor `loading` decodes the photographs."""

    def __init__(self, gui: Any, gallery: Gallery, size: tuple[int, int], loading: Executor):
        grey = np.full((*size, 3), 128, np.uint8)
        self._image = gui.add_image(geometry.side_by_side(grey, grey), jpeg_quality=90)
        self._caption = gui.add_markdown("")
        self._gallery, self._loading = gallery, loading
        self._lock = threading.Lock()  # of what follows
        self._render, self._wanted, self._name = grey, "", ""
        self._photograph = grey
        self._is_loading = self._closed = False
        self._damaged: set[str] = set()

    def show(self, name: str | None, render: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows a render and, as soon as it is decoded, the photograph of a name."""
        with self._lock:
            self._render, self._wanted = render, name or ""
            self._update()

    def close(self) -> None:
        """Stops showing anything."""
        with self._lock:
            self._closed = True

    def _update(self) -> None:
        name = self._wanted
        if name and name not in self._damaged:
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
        error = None
        try:
            self._gallery.picture(name)
        except Exception as caught:  # whatever it is, other photographs are shown after it
            error = caught
        with self._lock:
            self._is_loading = False
            if error:
                _log.warning("%s", error)
                self._damaged.add(name)
            if not self._closed:
                self._update()  # another one may be wanted by now


def code(text: str) -> str:
    """Text that Markdown shows letter by letter: names and messages may hold anything."""
    return "`" + re.sub(r"\s", " ", text.replace("`", "'")) + "`"
