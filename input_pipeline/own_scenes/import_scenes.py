"""Turns folders of scenes into shards, and notes in OUTPUT/.import what became of each.

A note is written after its shard, and both appear whole or not at all. What has a note is kept as
long as the files of its scenes are those of then, and none of them was refused.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline import storage
from input_pipeline.camera_table import CameraTable
from input_pipeline.import_report import Finding
from input_pipeline.workers import run_jobs
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json, write_text
from lvsm_jax.scenes.pictures import is_transparent_file
from lvsm_jax.scenes.readers.scene import some_of

TRAIN, TEST = "train", "test"
STATE = ".import"  # inside OUTPUT
_MOST_SHARDS = 256  # of a split; up to so many scenes each has one of its own


@dataclasses.dataclass(frozen=True)
class SceneFolder:
    """A folder, or file of cameras, that should be a scene."""

    name: str  # its path in the folder of scenes, which becomes the clip's key
    path: str
    files: int  # in the folder, as are the next two
    size: int  # bytes
    modified: int  # the newest, nanoseconds since 1970

    @property
    def fingerprint(self) -> list[Any]:
        """By which a note knows whether the scene is what it was."""
        return [self.name, self.files, self.size, self.modified]


# How a scene is read and stored: its clip, and notes on what was changed. Hashable, and sent to
# worker processes. UserError, OSError or MemoryError where the scene is refused.
ClipReader = Callable[[SceneFolder], tuple[storage.Clip, list[str]]]


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to be written."""

    split: str
    scenes: tuple[SceneFolder, ...]
    shard: epath.Path
    read: ClipReader

    @property
    def size(self) -> int:
        """Bytes to be read, for the progress."""
        return sum(scene.size for scene in self.scenes)

    @property
    def note(self) -> epath.Path:
        """File with the result."""
        return self.shard.parent / STATE / f"{self.shard.name}.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """What importing the scenes of a shard gave."""

    shard: storage.Shard
    findings: tuple[Finding, ...]
    cameras: CameraTable
    transparent: bool  # whether any picture is


def find_scenes(source: epath.Path, pattern: str, option: str = "--scenes") -> list[SceneFolder]:
    """What the pattern matches in a folder: folders, or where it matches none of them files.

    In the order of their names; hidden ones are none. UserError where nothing is matched.
    """
    if "://" in os.fspath(source) or not source.is_dir():
        raise UserError(f"there is no folder of scenes {source} on this machine")
    try:
        matches = sorted(source.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{option}={pattern} is no pattern of folders: {error}") from None
    there = {path.relative_to(source).as_posix(): path for path in matches}
    there = {name: path for name, path in there.items() if not _is_hidden(name)}
    folders = {name: path for name, path in there.items() if path.is_dir()}
    chosen = folders or there
    if not chosen:
        raise UserError(
            f"nothing in {source} matches {option}={pattern}: expected a folder for each scene"
        )
    return [_scene_folder(name, path) for name, path in chosen.items()]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _scene_folder(name: str, path: epath.Path) -> SceneFolder:
    files, size, modified = 0, 0, 0
    folder = path if path.is_dir() else path.parent
    for inner, _, names in os.walk(folder):
        for file in names:
            status = os.stat(os.path.join(inner, file), follow_symlinks=False)
            files, size = files + 1, size + status.st_size
            modified = max(modified, status.st_mtime_ns)
    return SceneFolder(name, os.fspath(path), files, size, modified)


def is_of_test(name: str, share: float) -> bool:
    """Whether a scene is held out: by its name alone, so that it stays so whatever is added.

    The first 8 bytes of the name's SHA-256, as a number in [0, 1), lie below the share.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def split_scenes(
    scenes: Sequence[SceneFolder], share: float, named: Collection[str], one: str = "scene"
) -> dict[str, list[SceneFolder]]:
    """The scenes to train on and, where there are any, those of the test split.

    These are those `named`, or a `share` of all. UserError for a name that no scene has, or where
    none is left to train on, unless the share is 1.
    """
    names = [scene.name for scene in scenes]
    if unknown := sorted(set(named) - set(names)):
        raise UserError(
            f"--test-{one}s: there is no {one} {some_of(unknown)}; there are {some_of(names)}"
        )
    splits = {TRAIN: [], TEST: []}
    for scene in scenes:
        held_out = scene.name in named if named else is_of_test(scene.name, share)
        splits[TEST if held_out else TRAIN].append(scene)
    if not splits[TRAIN] and (named or share < 1):
        raise UserError(f"all {len(scenes)} {one}s are of the test split, none is left to train on")
    return {split: members for split, members in splits.items() if members}


def make_jobs(
    output: epath.Path, name: str, split: str, scenes: Sequence[SceneFolder], read: ClipReader
) -> list[Job]:
    """The shards of a split: one a scene, or 256 of about as many scenes each."""
    count = min(len(scenes), _MOST_SHARDS)
    borders = [i * len(scenes) // count for i in range(count + 1)]
    return [
        Job(
            split,
            tuple(scenes[borders[i] : borders[i + 1]]),
            storage.shard_path(output, name, split, i, count),
            read,
        )
        for i in range(count)
    ]


def import_job(job: Job) -> Result:
    """Writes the scenes that can be read to the shard, then the note."""
    findings, cameras, transparent = [], [], False

    def clips() -> Iterator[storage.Clip]:
        nonlocal transparent
        for scene in job.scenes:
            try:
                clip, notes = job.read(scene)
            except (UserError, OSError, MemoryError) as error:
                reason = str(error) or type(error).__name__
                findings.append(Finding(job.split, scene.name, None, reason))
                continue
            findings.extend(Finding(job.split, scene.name, None, note, False) for note in notes)
            for frame in clip.frames:
                transparent = transparent or is_transparent_file(frame.image)
                cameras.append([*frame.w2c.ravel().tolist(), *frame.normalized_fxfycxcy.tolist()])
            yield clip

    job.note.unlink(missing_ok=True)  # it never describes another shard than is there
    shard = storage.write_shard(job.shard, clips())
    note = {
        "scenes": [scene.fingerprint for scene in job.scenes],
        "shard": dataclasses.asdict(shard),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "cameras": cameras,
        "transparent": transparent,
    }
    write_text(job.note, json.dumps(note))
    return _result(note)


def _result(note: dict[str, Any]) -> Result:
    numbers = np.array(note["cameras"], np.float32).reshape(-1, 16)
    return Result(
        storage.Shard.from_json(note["shard"]),
        tuple(Finding(**finding) for finding in note["findings"]),
        CameraTable(numbers[:, :12].reshape(-1, 3, 4), numbers[:, 12:]),
        note.get("transparent", False),
    )


def finished(job: Job) -> Result | None:
    """What an earlier run made of the scenes; None where they are to be read (again)."""
    if not (job.note.exists() and job.shard.exists()):
        return None
    try:
        note = read_json(job.note)
        result = _result(note)
        same = note["scenes"] == [scene.fingerprint for scene in job.scenes]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{job.note} is damaged ({error}); delete it to import its scenes again"
        ) from error
    return result if same and not any(finding.refused for finding in result.findings) else None


def import_all(jobs: Sequence[Job], workers: int) -> tuple[dict[Job, Result], bool]:
    """Imports what is not finished, in worker processes; and whether there was anything to do."""
    results = {job: finished(job) for job in jobs}
    if left := None in results.values():  # not complete until it is again
        (jobs[0].shard.parent / "dataset_info.json").unlink(missing_ok=True)
    return run_jobs(results, import_job, workers=workers, label="importing", unit="B"), left
