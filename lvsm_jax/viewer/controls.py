"""The controls of a visitor's view, and of the list of photographs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Gallery, Listed
from lvsm_jax.viewer.thumbnails import Thumbnails
from lvsm_jax.viewer.viewpoint import WALKING, Viewpoint

_FOVS = (10.0, 120.0)  # degrees
_SPEEDS = (0.1, 2.0)  # extents of the scene a second
_A_WHILE = 1.5  # seconds
_USED_MARK = "● "

Safely = Callable[[Callable[[Any], None]], Callable[[Any], None]]


class ViewControls:
    """Where one looks from, and how fast one walks.

    `changed` is called when the page has another scale, or cameras or Gaussians come and go on it;
    `save` when the visitor wants the picture that they see. There are Gaussians where `splats` says
    so.
    """

    def __init__(
        self,
        gui: Any,
        viewpoint: Viewpoint,
        changed: Callable[[], None],
        save: Callable[[], None],
        safely: Safely,
        *,
        splats: bool = False,
    ):
        self._viewpoint = viewpoint
        reset = gui.add_button("Back to the start", color="gray", icon="home")
        picture = gui.add_button("Download picture", color="gray", icon="camera")
        self._fov = gui.add_slider("Field of view °", *_FOVS, 1.0, 50.0)
        hint = "of W A S D, in extents of the cameras a second"
        speed = gui.add_slider("Walking speed", *_SPEEDS, 0.1, WALKING, hint=hint)
        self._cameras = gui.add_checkbox("Cameras in 3D", False)
        hint = "drawn by your browser; else you see what the server renders of them"
        self._splats = gui.add_checkbox("Gaussians in 3D", splats, visible=splats, hint=hint)
        self._zoomed = -_A_WHILE

        def walk(event: Any) -> None:
            viewpoint.walk_at(geometry.bounded(event.target.value, *_SPEEDS))
            changed()

        def zoom(event: Any) -> None:
            if event.client is not None:  # by the visitor, not by `show`
                self._zoomed = time.monotonic()
                viewpoint.set_fov(geometry.bounded(event.target.value, *_FOVS))

        reset.on_click(safely(lambda _: viewpoint.go_to_start()))
        picture.on_click(safely(lambda _: save()))
        self._fov.on_update(safely(zoom))
        speed.on_update(safely(walk))
        for box in (self._cameras, self._splats):
            box.on_update(safely(lambda _: changed()))

    @property
    def cameras_shown(self) -> bool:
        """Whether the visitor wants frustums."""
        return bool(self._cameras.value)

    @property
    def splats_shown(self) -> bool:
        """Whether the visitor wants Gaussians, where there are any, drawn by their browser."""
        return bool(self._splats.value)

    def show(self) -> None:
        """Sets the slider to the field of view that there is, but not while it is moved."""
        if time.monotonic() - self._zoomed < _A_WHILE:  # renders are behind
            return
        if (fov := self._viewpoint.fov) is not None:
            fov = float(round(min(_FOVS[1], max(_FOVS[0], fov))))
            if abs(fov - self._fov.value) > 1:
                self._fov.value = fov


class PhotographControls:
    """The list of photographs and what to do with them; `go`, `use` and `drop` take a name."""

    def __init__(
        self,
        gui: Any,
        go: Callable[[str], None],
        use: Callable[[str], None],
        drop: Callable[[str], None],
        alone: Callable[[], None],
        safely: Safely,
    ):
        actions = {"Go there": go, "Add": use, "Remove": drop}
        self._used = gui.add_markdown("")
        self._thumbnails = Thumbnails(gui, lambda name: safely(go)(name))
        self._choice = gui.add_dropdown("Photograph", [""])
        buttons = gui.add_button_group("", list(actions))
        self._alone = gui.add_button("Mine alone", color="gray", visible=False)
        self._alone.hint = "your photographs in a place of their own"

        def act(event: Any) -> None:
            if event.target.value in actions:  # a browser may say anything
                actions[event.target.value](self._choice.value.removeprefix(_USED_MARK))

        buttons.on_click(safely(act))
        self._alone.on_click(safely(lambda _: alone()))

    def update(self, gallery: Gallery, items: Sequence[Listed], has_own: bool) -> None:
        """Shows these photographs, of which some are the visitor's own or none."""
        chosen = self._choice.value.removeprefix(_USED_MARK)
        options = {i.name: f"{_USED_MARK if i.in_use else ''}{i.name}" for i in items}
        if tuple(options.values()) != tuple(self._choice.options):
            self._choice.options = list(options.values())
        self._choice.value = options.get(chosen, options[items[0].name])
        used = sum(item.in_use for item in items)
        self._used.content = f"{used} of {len(items)} in use (room for {gallery.max_views})"
        self._thumbnails.update(gallery, items)
        self._alone.visible = has_own

    def choose(self, name: str) -> None:
        """Chooses a photograph of the list."""
        for option in self._choice.options:
            if option.removeprefix(_USED_MARK) == name:
                self._choice.value = option
