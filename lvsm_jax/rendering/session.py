"""The session of an application: a model, photographs of one scene by name, and renders of it."""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from lvsm_jax.common.errors import UserError
from lvsm_jax.gaussians.gaussians import Gaussians
from lvsm_jax.gaussians.ply import move
from lvsm_jax.models.base import ViewSynthesisModel, check_times
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.gs_lrm import GSLRM
from lvsm_jax.models.layers import check_image_size
from lvsm_jax.rendering import gaussian_views, view_cache
from lvsm_jax.scenes.photograph import Photograph, PosedCamera, ResizeCrop
from lvsm_jax.scenes.pictures import MAX_PIXELS
from lvsm_jax.scenes.scene_frame import SceneFrame

_Cache = view_cache.ViewCache | gaussian_views.GaussianViews


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A photograph that a session renders from.

    Attributes:
        camera: as it was given, in the user's world and at the photograph's size.
        picture: the photograph as the model sees it, from `camera.cropped_to(*picture.shape[:2])`.
    """

    camera: PosedCamera
    picture: UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class _State:
    """All that a session knows; the cache can be computed from it. Replaced as a whole."""

    frame: SceneFrame | None  # of the model's cameras, once it is fixed
    views: dict[str, View] = dataclasses.field(default_factory=dict)  # in the order of `add`
    numbered: tuple[str, ...] = ()  # the name of each view of the cache by its number
    next_name: int = 0  # number in the next name given to a photograph without one


class Session:
    """Renders one scene from photographs that come and go.

    Photographs are of any size: they are resized to cover the model's, and the middle is cut out.
    Cameras are in any one world frame and unit: the photographs of the first `add` fix the frame
    and scale in which the model sees the scene (`SceneFrame.fit`), and all that comes later is
    mapped into them, also after the first ones are gone. A single first photograph defines no
    length: then one unit of the world is one of the model's, unless `scale` or `frame` is given.

    All methods may be called from several threads; they take turns. A call that fails, whatever
    the reason, leaves the session as it was. After `close` all raise RuntimeError. Programs are
    compiled at the first call of each kind (`render` and `render_path`: for each size) and never
    again.

    Examples:
        >>> with lvsm_jax.Session(lvsm_jax.load("path/to/export")) as session:
        ...     session.add([lvsm_jax.Photograph.open(path, camera) for path, camera in scene])
        ...     image = session.render(another_camera)

    Of a GSLRM the session keeps the Gaussians of its views. They are made anew by the first render
    after a change, and each number of views is a program of its own.

    Args:
        model: an EfficientLVSM, or a GSLRM.
        image_height: of the pictures that the model sees, and of renders by default; best that
            which it was trained on.
        image_width: by default that of a square.
        max_views: most photographs at a time; memory is taken for all of them at once.
        max_pixels: most pixels of a photograph (as given, and resized before it is cropped) or of a
            render.
        targets_at_once: pictures of a path that are rendered together.
        frame: the frame and scale, if the first photographs are not to fix them.
        scale: units of the model a unit of the world, if the first photographs are not to fix it.

    Raises:
        UserError: a model without such a cache, or a size or number that cannot be.
    """

    def __init__(
        self,
        model: ViewSynthesisModel,
        *,
        image_height: int = 256,
        image_width: int | None = None,
        max_views: int = 16,
        max_pixels: int = MAX_PIXELS,
        targets_at_once: int = 8,
        frame: SceneFrame | None = None,
        scale: float | None = None,
    ):
        view_cache.check_positive(max_pixels=max_pixels, targets_at_once=targets_at_once)
        if scale is not None and not (0 < scale < math.inf):
            raise UserError(f"scale is {scale}, expected a positive number")
        if scale is not None and frame is not None:
            raise UserError("frame has a scale of its own: give only one of frame and scale")
        self._model = model
        self._views: Any = gaussian_views if isinstance(model, GSLRM) else view_cache
        self._size = (image_height, image_height if image_width is None else image_width)
        if math.prod(self._size) > max_pixels:
            pixels = f"{self._size[1]}×{self._size[0]} pixels"
            raise UserError(f"pictures of {pixels} have more than max_pixels {max_pixels}")
        self._max_views, self._max_pixels = max_views, max_pixels
        self._targets_at_once, self._scale, self._frame = targets_at_once, scale, frame
        self._lock = threading.Lock()
        self._closed = False
        self._timings: dict[str, float] = {}
        self._state = _State(frame)
        # None until it is made, and when a call that took it failed.
        self._cache: _Cache | None = None
        self._moved: tuple[_Cache, Gaussians] | None = None  # of which the Gaussians are
        total = self._whole_cache().nbytes
        self._memory = {"total": total, "per_view": total // max_views}

    def add(self, photographs: Photograph | Iterable[Photograph]) -> list[str]:
        """Adds photographs, all of them or, if one cannot be, none; returns their names, in order.

        The first ones of a session fix its frame and scale, so give those together. Those without a
        name are called "view-0", "view-1" and so on, each number once in a session. Raises
        UserError if there is no room for so many, a name is taken, a photograph has too many
        pixels, or the frame puts cameras out of reach of float32.
        """
        with self._timed("add"):
            several = [photographs] if isinstance(photographs, Photograph) else list(photographs)
            with self._open() as state:  # before the work of resizing
                self._check_room(state, len(several))
            views = [self._view(photograph) for photograph in several]
            with self._open() as state:
                self._check_room(state, len(several))
                names, next_name = _new_names(state, several)
                if not names:
                    return []
                c2w = np.stack([view.camera.c2w for view in views])
                frame = state.frame or SceneFrame.fit(c2w, scale=self._scale)
                cameras = [model_cameras(frame, [view.camera], self._size) for view in views]
                cache = self._take_cache()
                for view, camera in zip(views, cameras, strict=True):  # one program for any number
                    cache = self._views.add_views(self._model, cache, model_images(view), camera)
                added = state.views | dict(zip(names, views, strict=True))
                self._put(_State(frame, added, (*state.numbered, *names), next_name), cache)
                return names

    def replace(self, name: str, photograph: Photograph) -> None:
        """Replaces the photograph of this name; the new one takes it, whatever its own.

        Raises UserError for an unknown name, or a photograph that `add` would refuse.
        """
        with self._timed("replace"):
            with self._open() as state:
                _check_known(state, (name,))
            view = self._view(photograph)
            with self._open() as state:
                _check_known(state, (name,))
                camera = model_cameras(state.frame, [view.camera], self._size)
                number, cache = state.numbered.index(name), self._take_cache()
                cache = self._views.replace_view(
                    self._model, cache, number, model_images(view), camera
                )
                self._put(dataclasses.replace(state, views=state.views | {name: view}), cache)

    def remove(self, *names: str) -> None:
        """Removes views; all of them or, for a name that is unknown or given twice, UserError."""
        with self._timed("remove"), self._open() as state:
            _check_known(state, names)
            numbered, cache = list(state.numbered), self._take_cache()
            for name in names:  # one program for any number
                number = numbered.index(name)
                cache = self._views.remove_views(cache, number)
                numbered[number] = numbered[-1]  # as the cache does
                numbered.pop()
            views = {name: view for name, view in state.views.items() if name not in names}
            self._put(dataclasses.replace(state, views=views, numbered=tuple(numbered)), cache)

    def render(
        self, camera: PosedCamera, *, height: int | None = None, width: int | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Renders what a camera sees.

        The camera is in the same world as the photographs. The render shows the middle of its
        picture, cut like a photograph of its size would be; that is all of it where the two have
        the same shape. Height and width, both or none, are multiples of the model's patch; by
        default those of the inputs. Raises UserError without views, for another size, or where the
        render is not finite.
        """
        with self._timed("render"):
            return self._render([camera], self._render_size(height, width))[0]

    def render_path(
        self, cameras: Sequence[PosedCamera], *, height: int | None = None, width: int | None = None
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Renders what several cameras see, one after the other, as `render` does.

        `targets_at_once` are rendered together, when the first of them is asked for, from the views
        that are there then; in between, others can use the session.
        """
        cameras, at_once = list(cameras), self._targets_at_once
        size = self._render_size(height, width)

        def renders() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
            for start in range(0, len(cameras), at_once):
                group = cameras[start : start + at_once]
                # Another number would be compiled anew.
                filled = group + group[-1:] * (at_once - len(group))
                with self._timed("render_path"):
                    images = self._render(filled, size)
                yield from images[: len(group)]

        return renders()

    @property
    def views(self) -> dict[str, View]:
        """The photographs that are there by name, in the order in which they were added."""
        with self._open() as state:
            return dict(state.views)

    @property
    def frame(self) -> SceneFrame | None:
        """From the world of the cameras to that of the model; None before the first `add`."""
        with self._open() as state:
            return state.frame

    @property
    def makes_gaussians(self) -> bool:
        """Whether its views become `gaussians`."""
        return self._views is gaussian_views

    @property
    def background(self) -> float:
        """Grey level, 0 to 1, of what no Gaussian covers; UserError where there are none."""
        with self._open():
            self._check_gaussians()
            return self._model.config.background

    @property
    def gaussians(self) -> Gaussians:
        """A GSLRM's Gaussians `[n]`, in the world of the photographs' cameras, as NumPy arrays.

        They are the same object until views change. UserError for another model, or without views.
        """
        with self._open() as state:
            self._check_gaussians()
            _check_some(state)
            cache = self._whole_cache()
            if self._moved is None or self._moved[0] is not cache:
                scene = jax.tree.map(lambda x: np.asarray(x[0]), cache.gaussians)
                back = np.linalg.inv(state.frame.world_to_scene)
                moved = move(scene, back[:3, :3], back[:3, 3], 1 / state.frame.scale)
                self._moved = cache, moved
            return self._moved[1]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of keys and values: `total`, taken from the beginning, and `per_view`.

        Of Gaussians, which are there from the first render on, as many as there may be.
        """
        with self._open():
            return dict(self._memory)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of the last call of each kind, of `render_path` its last group; with waiting."""
        with self._open():
            return dict(self._timings)

    def empty_copy(self) -> "Session":
        """Another session of the same model, sizes and room: without photographs, or their frame.

        A frame that this one was given it has too.

        It takes memory of its own, and its programs are compiled already where these were.
        """
        with self._open():
            return Session(
                self._model,
                image_height=self._size[0],
                image_width=self._size[1],
                max_views=self._max_views,
                max_pixels=self._max_pixels,
                targets_at_once=self._targets_at_once,
                frame=self._frame,
            )

    def close(self) -> None:
        """Frees the cache, after the call that is running; all other calls fail from then on."""
        with self._lock:
            self._closed = True
            for leaf in jax.tree.leaves(self._cache):
                leaf.delete()
            self._cache = self._model = self._moved = None
            self._state = _State(None)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[_State]:
        """Holds the lock, and gives the state of a session that is not closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the session is closed")
            yield self._state

    @contextlib.contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        """Notes the time of a call that succeeds."""
        start = time.perf_counter()
        yield
        self._timings[kind] = time.perf_counter() - start

    def _view(self, photograph: Photograph) -> View:
        """The photograph at the size of the model."""
        camera = photograph.camera
        what = "a photograph" if photograph.name is None else f"photograph {photograph.name!r}"
        with self._open():  # before a call takes the cache
            check_times(self._model.config, f"cameras of {what}", camera)
        crop = ResizeCrop.cover((camera.width, camera.height), *self._size)
        for (width, height), when in ((crop.source, ""), (crop.resized, " when it is resized")):
            if width * height > self._max_pixels:
                raise UserError(
                    f"{what} has {width}×{height} pixels{when}, more than max_pixels "
                    f"{self._max_pixels}"
                )
        return View(camera, photograph.cropped_to(*self._size))

    def _check_room(self, state: _State, new: int) -> None:
        there = len(state.views)
        if there + new > self._max_views:
            hint = f": remove or replace some of {', '.join(state.views)}" if there else ""
            most = f"at most {self._max_views}{hint}"
            raise UserError(f"full: {new} more views do not fit beside {there} of {most}")

    def _render_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size of a render, once it is known that there can be one."""
        with self._open() as state:
            if (height is None) != (width is None):
                raise UserError("give both height and width of the render, or none")
            size = self._size if height is None else (height, width)
            check_image_size(*size, self._model.config.patch_size)
            if math.prod(size) > self._max_pixels:
                pixels = f"{size[1]}×{size[0]} pixels"
                raise UserError(f"a render of {pixels} has more than max_pixels {self._max_pixels}")
            _check_some(state)
            return size

    def _render(
        self, cameras: Sequence[PosedCamera], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "k h w 3"]:
        with self._open() as state:
            _check_some(state)
            for camera in cameras:
                check_times(self._model.config, "cameras to render", camera)
            targets = model_cameras(state.frame, cameras, size)
            renders = self._views.render(
                self._model, self._whole_cache(), targets, size, targets_at_once=len(cameras)
            )
            renders = np.asarray(renders[0])
        if not np.isfinite(renders).all():
            bad = np.flatnonzero(~np.isfinite(renders).all(axis=(1, 2, 3)))[0]
            raise UserError(
                f"the render is not finite at the position {cameras[bad].c2w[:3, 3].tolist()}: the "
                "model's weights are damaged, or a camera is far from all that it was trained on"
            )
        return np.rint(renders * 255).astype(np.uint8)

    def _check_gaussians(self) -> None:
        if not self.makes_gaussians:
            raise UserError(f"{type(self._model).__name__} makes no Gaussians; GSLRM does")

    def _whole_cache(self) -> _Cache:
        """The cache; made anew from the pictures if a call that failed took it with it."""
        if self._cache is None:
            cache = self._views.init_cache(self._model, 1, self._max_views, self._size)
            for name in self._state.numbered:
                view = self._state.views[name]
                camera = model_cameras(self._state.frame, [view.camera], self._size)
                cache = self._views.add_views(self._model, cache, model_images(view), camera)
            self._cache = cache
        return self._cache

    def _take_cache(self) -> _Cache:
        """The cache, for a change that consumes it: until `_put`, the session has none."""
        cache, self._cache = self._whole_cache(), None
        return cache

    def _put(self, state: _State, cache: _Cache) -> None:
        """Ends a change, when it is known to have worked."""
        self._state, self._cache = state, jax.block_until_ready(cache)


def model_cameras(
    frame: SceneFrame, cameras: Sequence[PosedCamera], size: tuple[int, int]
) -> Cameras:
    """The cameras of pictures of a size, `[1, k]`, as the model sees them."""
    c2w = np.stack([camera.c2w for camera in cameras])
    fxfycxcy = np.stack([camera.cropped_to(*size).fxfycxcy for camera in cameras])
    times = [camera.time for camera in cameras]
    known = None if None in times else np.array([times], np.float32)
    with np.errstate(over="ignore"):  # is checked below
        result = Cameras(frame.apply(c2w)[None], fxfycxcy[None].astype(np.float32), known)
    result.check("in the frame of the session, cameras")
    return result


def model_images(view: View) -> np.ndarray:
    """`[1, 1, h, w, 3]`, float in [0, 1]."""
    return view.picture[None, None].astype(np.float32) / 255


def _new_names(state: _State, photographs: Sequence[Photograph]) -> tuple[list[str], int]:
    """Names for new photographs, and the number of the next that is given."""
    given = [photograph.name for photograph in photographs if photograph.name is not None]
    for name in given:
        if name in state.views:
            raise UserError(f"there is a view {name!r} already: replace it, or remove it first")
        if given.count(name) > 1:
            raise UserError(f"several photographs are called {name!r}")
    taken, number = {*state.views, *given}, state.next_name
    names = []
    for photograph in photographs:
        name = photograph.name
        while name is None:
            if f"view-{number}" not in taken:
                name = f"view-{number}"
            number += 1
        names.append(name)
    return names, number


def _check_known(state: _State, names: Sequence[Any]) -> None:
    if unknown := [name for name in names if name not in state.views]:
        there = ", ".join(state.views) or "none"
        raise UserError(f"no view {', '.join(map(repr, unknown))}; there are: {there}")
    if len(set(names)) < len(names):
        raise UserError(f"a view is named twice: {', '.join(map(repr, names))}")


def _check_some(state: _State) -> None:
    if not state.views:
        raise UserError("nothing to render from: the session has no views")
