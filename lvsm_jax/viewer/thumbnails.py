"""The photographs in use as small pictures that go where they were taken."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lvsm_jax.viewer.gallery import Gallery, Listed

_SIDE = 48  # pixels, of the longer side
_MOST = 48  # beyond, the list is the better way
_COLOURS = {True: "#ff8c00", False: "#00beff"}  # of the scene's, and of uploaded ones

# viser's buttons have words alone. A style sheet gives them pictures: it follows their order, and
# no name is in it.
_STYLE = (
    "<div class='lvsm-thumbnails'></div><style>"
    ":has(> .lvsm-thumbnails) + * button {{ flex: none !important; padding: 0; font-size: 0;"
    " border: 2px solid; border-radius: 4px; background: center / cover; }}{each}</style>"
)
_EACH = (
    ":has(> .lvsm-thumbnails) + * button:nth-child({number}) {{ width: {width}px; height: "
    "{height}px; min-width: {width}px !important; border-color: {colour};"
    " background-image: url(data:image/jpeg;base64,{data}); }}"
)


class Thumbnails:
    """A grid of the photographs in use; a click on one calls `clicked` with its name."""

    def __init__(self, gui: Any, clicked: Callable[[str], None]):
        self._style = gui.add_html("", visible=False)
        self._buttons = gui.add_button_group("In use", [" "], visible=False)
        self._buttons.on_click(lambda event: clicked(event.target.value))
        self._shown: tuple[Any, ...] = ()

    def update(self, gallery: Gallery, items: Sequence[Listed]) -> None:
        """Shows those of these photographs that are in use."""
        pictures = [
            (item, picture)
            for item in items
            if item.in_use and (picture := gallery.picture_in_use(item.name)) is not None
        ][:_MOST]
        shown = gallery, *((item.name, item.owner is None) for item, _ in pictures)
        if shown == self._shown:
            return
        self._shown = shown
        if pictures:
            self._style.content = style_of([(p, item.owner is None) for item, p in pictures])
            self._buttons.options = tuple(item.name for item, _ in pictures)
        self._style.visible = self._buttons.visible = bool(pictures)


def style_of(pictures: Sequence[tuple[UInt8[np.ndarray, "h w 3"], bool]]) -> str:
    """HTML that makes the buttons that follow it pictures, the scene's own or uploaded ones."""
    each = []
    for i, (picture, own) in enumerate(pictures):
        small, file = Image.fromarray(picture), io.BytesIO()
        small.thumbnail((_SIDE, _SIDE))
        small.save(file, "JPEG", quality=80)
        data = base64.b64encode(file.getvalue()).decode()
        size = {"width": small.width, "height": small.height, "colour": _COLOURS[own]}
        each.append(_EACH.format(number=i + 1, data=data, **size))
    return _STYLE.format(each="".join(each))
