"""What becomes of the photographs that a visitor brings, with their cameras or without."""

import dataclasses
import pathlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.readers import ScenePhotograph, read_scene
from lvsm_jax.viewer.jobs import Job, Report
from lvsm_jax.viewer.uploads import NoPosesError, Unposed, Uploads
from lvsm_jax.viewer.viewpoint import Viewpoint
from lvsm_jax.viewer.worlds import Page, World

_TITLE = "Finding cameras"
NAME = "Your photographs"  # of a visitor's own place


class Drops:
    """Takes a visitor's files: into the world they are in, or into a place of their own.

    `enter` is called with such a place and says whether it is wanted: not where the visitor left
    meanwhile. Messages go to `tell`.
    """

    def __init__(
        self,
        key: Hashable,
        page: Page,
        uploads: Uploads,
        viewpoint: Viewpoint,
        job: Job,
        tell: Callable[..., None],
        enter: Callable[[World], bool],
    ):
        self._key, self._page, self._uploads, self._viewpoint = key, page, uploads, viewpoint
        self._job, self._tell, self._enter = job, tell, enter

    def receive(self, name: str, content: bytes) -> None:
        """Takes a file; raises UserError for what cannot be used."""
        try:
            photographs = self._uploads.receive(name, content)
        except NoPosesError:
            unposed = self._uploads.receive_unposed(name, content)
            self._job.start(_TITLE, lambda report: self._find(unposed, report))
            return
        world = self._viewpoint.world
        if not photographs:
            count = self._uploads.poses
            self._tell("Poses", f"{count} poses are known: now upload their pictures")
        elif world.is_far([photograph.camera for photograph in photographs]):
            self._open(photographs, "Their cameras stand far from this scene's")
        else:
            added, used = world.gallery.upload(self._key, photographs)
            rest = "" if added == used else f", {added - used} not: there is no more room"
            text = f"{used} are in use now{rest}."
            if world is self._page.scene:
                text += " Do they show another place? Then press “Mine alone”, below their list."
            self._tell("Photographs", text, colour="green")

    def open_alone(self) -> None:
        """Takes the visitor's photographs out of the scene, into a place of their own."""
        gallery = self._page.gallery
        mine = gallery.uploaded_by(self._key)
        if not mine:
            raise UserError(
                "none of the photographs of this scene are yours: drop some on the page"
            )
        self._open(mine, "They are taken out of the scene")
        gallery.take_back(self._key)

    def _open(self, photographs: Sequence[ScenePhotograph], why: str) -> None:
        world = self._page.places.open(NAME, photographs)
        if not self._enter(world):
            self._page.places.close(world)
            return
        used = f"{len(world.gallery.in_use)} of {len(photographs)} are in use"
        back = "“Place” leads back to the scene."
        self._tell("Your photographs", f"{why}: you see them alone. {used}. {back}", colour="green")

    def _find(self, unposed: Unposed, report: Report) -> None:
        """Finds the cameras of photographs, and opens the place that they show."""
        from lvsm_jax.poses import find_poses  # which may take long to import

        def progress(stage: Any) -> None:
            left = f", {stage.seconds_left:.0f} s left" if stage.seconds_left else ""
            share = stage.done / stage.total if stage.total else None
            count = f" {stage.done} of {stage.total}" if stage.total else ""
            report(share, f"{_TITLE}: {stage.stage}{count}{left}")

        folder = unposed.folder.with_name(f"{unposed.folder.name}-posed")
        try:
            found = find_poses(unposed.folder, folder, progress=progress)
        except UserError as error:
            # They name files as we keep them, which the visitor does not know.
            raise UserError(unposed.in_their_words(str(error), folder)) from error
        # Those that were found are files of another format.
        named = {pathlib.Path(ours).stem: theirs for ours, theirs in unposed.names.items()}
        photographs = [
            dataclasses.replace(p, name=named.get(pathlib.Path(p.name).stem, p.name))
            for p in read_scene(found.folder).photographs
        ]
        why = "Their cameras were found"
        if found.left_out:
            names = ", ".join(unposed.names.get(name, name) for name in found.left_out)
            why += f", but not those of {names}"
        self._open(photographs, why)
