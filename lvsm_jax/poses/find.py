"""Finds the poses of a folder of photographs, or of a video, and keeps them beside it."""

import dataclasses
import os
import pathlib
import shutil
from typing import Any

from lvsm_jax.common import files
from lvsm_jax.common.colours import Colour
from lvsm_jax.common.errors import UserError
from lvsm_jax.poses import pictures
from lvsm_jax.poses.process import LOG, PosesRefused, Progress, Told, check_installed, run_worker
from lvsm_jax.scenes.video import VIDEO_SUFFIXES, count_frames, extract_frames

FOLDER = "lvsm_poses"  # in that of the photographs, by default
RECORD = "poses.json"  # how the poses were found, and of what photographs
PAGE = "check.html"
MAX_SIZE = 1600  # pixels of the longer side
FRAMES = 40  # of a video

_FORMAT = 1
_SMALLEST, _LARGEST = 128, 8192  # of max_size


@dataclasses.dataclass(frozen=True)
class PosesFound:
    """A scene that was written, or was there."""

    folder: pathlib.Path  # for `read_scene`
    registered: list[str]  # names of the photographs in it
    left_out: dict[str, str]  # the others, with why
    notes: list[str]  # how it was found, and what to think of it, a sentence each
    reused: bool  # whether it was there already, of the same photographs

    @property
    def page(self) -> pathlib.Path:
        """The page that shows whether the cameras are right."""
        return self.folder / PAGE


def output_of(photographs: str | os.PathLike) -> pathlib.Path:
    """Where the poses of a folder or a video are kept unless somebody says otherwise."""
    path = pathlib.Path(photographs).expanduser()
    return path / FOLDER if path.is_dir() else path.with_name(f"{path.stem}_{FOLDER}")


def find_poses(
    photographs: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    progress: Told | None = None,
    max_size: int | None = None,
    frames: int | None = None,
    background: Colour | None = None,
    overwrite: bool = False,
) -> PosesFound:
    """Finds cameras of the photographs of a folder, or of frames of a video, and writes a scene.

    `output`, by default `output_of` the photographs, gets `cameras.json` and `images/` (upright and
    undistorted, their longer side at most `max_size` pixels), the same as a COLMAP model in
    `sparse/0`, `check.html` and `poses.json`; it appears whole or not at all. Where it is there, of
    the same photographs, nothing is done, whatever it was found with of what is None here. Of a
    video so many `frames` are taken, evenly spaced. Transparent pixels are put on the `background`.
    By default 1600 pixels, 40 frames and no background. The same photographs give the same cameras.

    `progress` is called in this thread, again and again; what it raises stops the work.
    PosesRefused where poses are not found or not believed; UserError for photographs that cannot be
    read, `frames` of no video, poses of other photographs in `output` unless `overwrite`, and
    without pycolmap;
    FileExistsError where `output` is something else.
    """
    source = pathlib.Path(photographs).expanduser()
    target = output_of(source) if output is None else pathlib.Path(output).expanduser()
    if max_size is not None and not _SMALLEST <= max_size <= _LARGEST:
        raise UserError(f"max_size={max_size}, expected {_SMALLEST} to {_LARGEST} pixels")
    if frames is not None and frames < 2:
        raise UserError(f"frames={frames}, expected at least 2")
    of = _sources(source)
    if frames is not None and not pictures.is_video(source):
        raise UserError(f"frames={frames}, but {source} is no video: all its photographs are taken")
    colour = None if background is None else list(background)
    asked = {"max_size": max_size, "background": colour, "frames": frames}
    usual = {"max_size": MAX_SIZE, "frames": FRAMES if pictures.is_video(source) else None}
    job = {name: usual.get(name) if value is None else value for name, value in asked.items()}
    record = {"format": _FORMAT, "photographs": pictures.fingerprint(of), "options": dict(job)}
    if target.exists() and not overwrite:
        return _reuse(target, source, record, asked)
    if target.exists() and not (target / RECORD).is_file():
        raise FileExistsError(f"{target} exists and holds no poses: it is not overwritten")
    check_installed()
    _check_writable(target, source, named=output is not None)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.clear_unfinished(target.parent, target.name)
    work = pathlib.Path(files.temporary_name(target))
    work.mkdir()
    try:
        if job["frames"]:
            of = _take_frames(source, work / "frames", job["frames"], progress)
        job |= {
            "photographs": [os.fspath(file.absolute()) for file in of],
            "record": record,
            "do": "find",
            "title": source.name,
        }
        kept = target.with_name(f"{target.name}.log")
        found = run_worker(job, work, kept, progress)
        (work / LOG).rename(work / "result" / LOG)
        _replace(target, work / "result")
    except PosesRefused as refused:
        if len(of) != job["frames"]:  # no video, or all that it has
            raise
        often = f"lvsm poses {source} --frames={2 * len(of)}"
        more = f"{refused}; or take more than {len(of)} frames of it: {often}"
        raise PosesRefused(more, refused.left_out) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return PosesFound(target, found["registered"], found["left_out"], found["notes"], False)


def _check_writable(target: pathlib.Path, source: pathlib.Path, *, named: bool) -> None:
    try:
        files.check_writable("OUTPUT", target.parent)
    except UserError as error:
        if named:
            raise
        elsewhere = f"keep them elsewhere, lvsm poses {source} FOLDER, and name FOLDER as the scene"
        raise UserError(f"{error}; {elsewhere}") from error


def _sources(source: pathlib.Path) -> list[pathlib.Path]:
    if not source.exists():
        raise FileNotFoundError(f"there are no photographs {source}: no such folder or video")
    if source.is_dir():
        return pictures.list_photographs(source)
    if not pictures.is_video(source):
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise UserError(f"{source}: expected a folder of photographs, or a video ({kinds})")
    return [source]


def _reuse(
    target: pathlib.Path, source: pathlib.Path, record: dict[str, Any], asked: dict[str, Any]
) -> PosesFound:
    """What is in the target, if it is of these photographs, as they are, and of what is asked."""
    if not (target / RECORD).is_file():
        raise FileExistsError(f"{target} exists and holds no poses: choose another folder")
    there = files.read_json(target / RECORD)
    again = f"lvsm poses {source} --overwrite finds them anew"
    try:
        if there["format"] != _FORMAT:
            raise UserError(f"{target} was written by another version of lvsm_jax: {again}")
        if changes := pictures.what_changed(there["photographs"], record["photographs"]):
            changed = ", ".join(changes)
            raise UserError(f"{target} has poses of other photographs: {changed}; {again}")
        was, now = there["options"], {k: v for k, v in asked.items() if v is not None}
        if others := [f"{name} {was.get(name)}" for name in now if was.get(name) != now[name]]:
            raise UserError(f"{target} has poses found with {', '.join(others)}: {again}")
        lists = there["registered"], there["left_out"], there["notes"]
        return PosesFound(target, *lists, reused=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{target / RECORD}: it lacks {error}; {again}") from error


def _take_frames(
    video: pathlib.Path, folder: pathlib.Path, count: int, progress: Told | None
) -> list[pathlib.Path]:
    if progress:
        progress(Progress("frames", 0, 0, None))
    return extract_frames(video, folder, count=min(count, count_frames(video)))


def _replace(target: pathlib.Path, new: pathlib.Path) -> None:
    """Puts a folder in the place of another; there is a moment without, but no loss."""
    old = pathlib.Path(files.temporary_name(target)).with_suffix(".old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    if old.exists():
        shutil.rmtree(old)
