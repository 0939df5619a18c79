"""The photographs of the scene, and which of them are in use, the same for all visitors."""

import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from lvsm_jax.common.errors import UserError
from lvsm_jax.rendering.session import Session
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import ScenePhotograph

_log = logging.getLogger(__name__)

_PICTURES_KEPT = 64  # decoded and cropped


@dataclasses.dataclass(frozen=True)
class Listed:
    """A photograph of the gallery."""

    photograph: ScenePhotograph  # not yet decoded; its name is unique
    # Of the crop that the model sees; it follows from the photograph.
    camera: PosedCamera = dataclasses.field(compare=False)
    owner: Hashable | None  # who uploaded it; None for the scene's own
    in_use: bool  # whether the session renders from it

    @property
    def name(self) -> str:
        """Its name in gallery and session."""
        return self.photograph.name


class Gallery:
    """Photographs to choose from, over a session that holds those in use.

    The session's views are all in the gallery, and only the gallery changes them. `size` is the
    height and width of the pictures that the model sees. Methods may be called from any thread;
    changes take turns. After each, if it changed something, the listeners are called in the thread
    that made it.
    """

    def __init__(
        self,
        session: Session,
        photographs: Sequence[ScenePhotograph],
        size: tuple[int, int],
        max_views: int,
    ):
        self._session, self._size, self.max_views = session, size, max_views
        self._photographs = {photograph.name: photograph for photograph in photographs}
        self._owners: dict[str, Hashable] = {}  # of uploaded ones
        self._changing = threading.Lock()
        self._pictures: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._listeners: dict[Hashable, Callable[[], None]] = {}
        self._of_views: set[Hashable] = set()  # listeners to changes of the photographs in use
        self._views = session.views  # a copy: asking the session would wait for a render

    def listing(self) -> list[Listed]:
        """All photographs: those of the scene in its order, then the uploaded ones."""
        used, photographs = self.in_use, list(self._photographs.values())
        return [
            Listed(p, p.camera.cropped_to(*self._size), self._owners.get(p.name), p.name in used)
            for p in photographs
        ]

    @property
    def in_use(self) -> frozenset[str]:
        """Names of the photographs that the session renders from."""
        return frozenset(self._views)

    def listen(
        self, key: Hashable, listener: Callable[[], None], *, of_views: bool = False
    ) -> None:
        """Calls a function after each change until the key leaves, or each `of_views` in use."""
        self._listeners[key] = listener
        if of_views:
            self._of_views.add(key)

    def uploaded_by(self, owner: Hashable) -> list[ScenePhotograph]:
        """The photographs that a visitor added."""
        theirs = [name for name, whose in list(self._owners.items()) if whose == owner]
        return [self._photographs[name] for name in theirs]

    def use(self, name: str) -> None:
        """Adds a photograph to those that the session renders from.

        Raises UserError for no such photograph, no room for it, or one that cannot be decoded.
        """
        with self._change():
            photograph = self._known(name)
            if name in self._views:
                return
            if len(self._views) >= self.max_views:
                full = f"{self.max_views} photographs are in use and there is room for no more"
                raise UserError(f"{full}: remove one first")
            self._session.add(photograph.load())

    def drop(self, name: str) -> None:
        """Stops rendering from a photograph, which stays in the gallery."""
        with self._change():
            self._known(name)
            if name in self._views:
                self._session.remove(name)

    def upload(self, owner: Hashable, photographs: Sequence[ScenePhotograph]) -> tuple[int, int]:
        """Adds a visitor's photographs; returns their number, and how many are now in use."""
        used = 0
        with self._change():
            for photograph in photographs:
                named = dataclasses.replace(photograph, name=self._free_name(photograph.name))
                self._owners[named.name], self._photographs[named.name] = owner, named
                if len(self._views) + used < self.max_views:
                    self._session.add(named.load())
                    used += 1
        return len(photographs), used

    def leave(self, owner: Hashable) -> None:
        """Removes a visitor's listener and photographs, those in use too."""
        self.ignore(owner)
        self.take_back(owner)

    def ignore(self, key: Hashable) -> None:
        """Removes a listener, if it is there."""
        self._listeners.pop(key, None)
        self._of_views.discard(key)

    def take_back(self, owner: Hashable) -> None:
        """Removes a visitor's photographs, those in use too."""
        with self._change():
            theirs = [name for name, whose in self._owners.items() if whose == owner]
            if used := self._views.keys() & theirs:
                self._session.remove(*used)
            for name in theirs:
                del self._photographs[name], self._owners[name]
                self._pictures.pop(name, None)

    def picture(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """A photograph as the model sees it, decoded if it is neither in use nor cached.

        Raises UserError for no such photograph, or one that cannot be decoded.
        """
        photograph = self._known(name)
        if (picture := self.picture_in_use(name)) is not None:
            return picture
        if (picture := self._pictures.get(name)) is None:
            picture = photograph.load().cropped_to(*self._size)
            with self._changing:
                # Its owner may have left meanwhile, and another visitor taken the name.
                if self._photographs.get(name) is photograph:
                    self._pictures[name] = picture
                if len(self._pictures) > _PICTURES_KEPT:
                    self._pictures.popitem(last=False)
        return picture

    def picture_in_use(self, name: str) -> UInt8[np.ndarray, "h w 3"] | None:
        """The same for a photograph in use, else None."""
        view = self._views.get(name)
        return None if view is None else view.picture

    def at_hand(self, name: str) -> bool:
        """Whether `picture` need not decode."""
        return name in self._pictures or name in self._views

    def _known(self, name: str) -> ScenePhotograph:
        if name not in self._photographs:
            raise UserError(f"there is no photograph {name!r} any more")
        return self._photographs[name]

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self._photographs:
            name, number = f"{wanted} ({number})", number + 1
        return name

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Makes changes one by one, and calls the listeners, also after one that failed."""
        views = changed = False
        try:
            with self._changing:
                before = self._views, dict(self._photographs)
                try:
                    yield
                finally:
                    self._views = self._session.views
                    views = not _are_same(before[0], self._views)
                    changed = views or not _are_same(before[1], self._photographs)
        finally:
            for key, listener in list(self._listeners.items()):
                if not (views if key in self._of_views else changed):
                    continue
                try:
                    listener()
                except Exception:  # of one visitor, which must not undo the change for all
                    _log.exception("a visitor's page could not be updated")


def _are_same(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether the names stand for the very same things: another photograph may take a name."""
    return before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def prepare(
    session: Session, inputs: Sequence[ScenePhotograph], sizes: Sequence[tuple[int, int]]
) -> None:
    """Adds the first photographs, and compiles all programs that visitors use."""
    first = [chosen.load() for chosen in tqdm(inputs, "decoding", unit="photograph", leave=False)]
    with tqdm(total=len(sizes) + 2, desc="compiling", unit="program", leave=False) as progress:
        session.add(first)
        progress.update()
        for height, width in sizes:
            session.render(first[0].camera, height=height, width=width)
            progress.update()
        session.remove(first[-1].name)
        session.add(first[-1])
        progress.update()
