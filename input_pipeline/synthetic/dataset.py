"""Writes the shards of a dataset of worlds, and its evaluation index.

Pictures are made on this machine's devices, in the main process, and encoded in its threads.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from concurrent import futures

import jax
import numpy as np
from etils import epath

from input_pipeline import storage
from input_pipeline.alpha import ALPHA_FILE, DatasetAlpha, write_alpha
from input_pipeline.camera_table import CameraTable, write_camera_table
from input_pipeline.jpeg import encode_jpeg
from input_pipeline.orbit import GSO_TARGETS, gso_views
from input_pipeline.png import encode_png
from input_pipeline.synthetic.settings import NUM_TARGETS, SPLITS, Settings
from input_pipeline.workers import run_jobs
from lvsm_jax.common.colours import WHITE
from lvsm_jax.common.files import clear_unfinished, expand, read_json, write_text
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.worlds.generate import Worlds
from lvsm_jax.worlds.rig import rig_intrinsics, rig_poses
from lvsm_jax.worlds.stream import Block, render

NAME = "worlds"
SETTINGS_FILE = "synthetic.json"
INDEX_FILE = "evaluation_index.json"
PROGRESS_FOLDER = ".progress"  # what is known of finished shards, until the set is complete
FRAME_INTERVAL = 100_000  # microseconds
_BEFORE = "rooms-"  # begins the names of shards that earlier versions wrote
SCENES_AT_ONCE = 8  # rendered together, over the devices


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to be written."""

    settings: Settings
    split: str
    scenes: range  # numbers of the scenes of this shard
    path: epath.Path  # file of this shard

    @property
    def size(self) -> int:
        """Number of scenes."""
        return len(self.scenes)

    @property
    def note(self) -> epath.Path:
        """File that remembers, until the set is complete, that this shard is."""
        return self.path.parent / PROGRESS_FOLDER / f"{self.path.name}.json"


def make_clips(settings: Settings, split: str, numbers: Sequence[int]) -> Iterator[storage.Clip]:
    """Films these scenes of a split; equal settings and numbers give equal bytes."""
    size = settings.frames, settings.height, settings.width
    block = Block(settings.worlds, *size, on_rig=bool(settings.rig))
    # Always as many, so that there is one program; they are dealt to the devices that divide them.
    devices = jax.local_devices()[: np.gcd(SCENES_AT_ONCE, jax.local_device_count())]
    mesh = make_mesh(devices=devices)
    with futures.ThreadPoolExecutor() as threads:
        for first in range(0, len(numbers), SCENES_AT_ONCE):
            some = np.array(numbers[first : first + SCENES_AT_ONCE], np.int32)
            filled = np.concatenate([some, np.repeat(some[-1], SCENES_AT_ONCE - len(some))])
            with jax.set_mesh(mesh):
                worlds = jax.device_get(render(block, split, settings.seed, filled))
            encode = functools.partial(_clip, settings, split, worlds)
            yield from threads.map(encode, range(len(some)), some.tolist())


def _clip(settings: Settings, split: str, worlds: Worlds, place: int, number: int) -> storage.Clip:
    """The clip of a scene, which has this place in what was rendered."""
    size = np.array([settings.width, settings.height] * 2, np.float32)
    intrinsics = (worlds.cameras.fxfycxcy[place] / size).astype(np.float32)
    w2c = np.linalg.inv(worlds.cameras.c2w[place].astype(np.float64))[:, :3].astype(np.float32)
    encode = encode_png if settings.rig else encode_jpeg
    frames = [
        storage.Frame(encode(image), intrinsics[position], w2c[position], position * FRAME_INTERVAL)
        for position, image in enumerate(worlds.images[place])
    ]
    url = f"synthetic://worlds/seed-{settings.seed}/{split}/{number}"
    return storage.Clip(f"world-{split}-{number:06d}", url, frames)


def evaluation_index(settings: Settings) -> dict[str, dict[str, list[int]]]:
    """For each test clip two context frames, most of the clip apart, and targets half-way between.

    Targets keep about a third of the span away from both: next to a context frame, copying it
    would do. Views of a rig are chosen by `input_pipeline.orbit`.
    """
    if settings.rig:
        return _index_of_rig(settings)
    index, end = {}, settings.frames - 1
    for number in range(settings.test_scenes):
        rng = np.random.default_rng([settings.seed, len(SPLITS), number])
        span = int(rng.integers(max(NUM_TARGETS + 1, -(-3 * end // 4)), end, endpoint=True))
        first = int(rng.integers(0, end - span, endpoint=True))
        away = (span - 1) // 3
        between = np.arange(first + away, first + span - away + 1)
        targets = sorted(rng.choice(between, NUM_TARGETS, replace=False).tolist())
        context = [first, first + span]
        index[f"world-test-{number:06d}"] = {"context": context, "target": targets}
    return index


def _index_of_rig(settings: Settings) -> dict[str, dict[str, list[int]]]:
    cameras, index = _cameras_of_rig(settings, 1), {}
    for number in range(settings.test_scenes):
        key = f"world-test-{number:06d}"
        entry = gso_views(cameras, key, GSO_TARGETS, settings.seed)
        index[key] = {name: list(views) for name, views in dataclasses.asdict(entry).items()}
    return index


def _cameras_of_rig(settings: Settings, clips: int) -> CameraTable:
    """The cameras of so many clips, which all have the same."""
    w2c = np.linalg.inv(rig_poses().astype(np.float32).astype(np.float64))[:, :3]
    size = np.array([settings.width, settings.height] * 2, np.float32)
    intrinsics = rig_intrinsics(settings.height, settings.width).astype(np.float32) / size
    one = CameraTable(w2c.astype(np.float32), np.tile(intrinsics, (settings.frames, 1)))
    return CameraTable.joined([one] * clips)


def generate(directory: str, settings: Settings, overwrite: bool = False) -> bool:
    """Writes the dataset, or what is missing of it; False when it was already complete.

    A set that was made with other settings is replaced where `overwrite` says so, and otherwise a
    DatasetError, as is a directory that holds something else.
    """
    folder = expand(directory)
    if _prepare(folder, settings, overwrite):
        _tidy(folder)
        return False
    tasks = [task for split in SPLITS for task in _tasks(folder, settings, split)]
    finished = {task: _finished(task) for task in tasks}
    shards = run_jobs(finished, _write, workers=1, label="worlds", unit=" scenes")
    write_text(folder / INDEX_FILE, json.dumps(evaluation_index(settings), indent=1))
    if settings.rig:
        for split in SPLITS:
            table = _cameras_of_rig(settings, settings.num_scenes(split))
            write_camera_table(folder, split, table)
        write_alpha(folder, DatasetAlpha(Alpha(WHITE), transparent=True))
    splits = {split: [shards[task] for task in tasks if task.split == split] for split in SPLITS}
    storage.finalize(folder, NAME, splits)
    _tidy(folder)
    return True


def _prepare(folder: epath.Path, settings: Settings, overwrite: bool) -> bool:
    """Makes the directory ready to write to; True if there is nothing left to write."""
    wanted, path = settings.to_json(), folder / SETTINGS_FILE
    if path.exists():
        found = read_json(path)
        if found == wanted:
            return (folder / "dataset_info.json").exists()
        if not overwrite:
            other = [key for key in wanted if found.get(key) != wanted[key]]
            changes = (f"{key} {found.get(key)} there, {wanted[key]} asked for" for key in other)
            raise storage.DatasetError(
                f"{folder} holds worlds made with other settings ({'; '.join(changes)}): choose "
                "another directory, or replace them with --overwrite"
            )
        # Nothing but a set of worlds is removed; what declares it complete goes first.
        (folder / "dataset_info.json").unlink(missing_ok=True)
        _tidy(folder)
        tables = (f"{table}-{split}.npz" for table in ("scenes", "cameras") for split in SPLITS)
        ours = (INDEX_FILE, "features.json", ALPHA_FILE, *tables)
        for file in folder.iterdir():
            if file.name in ours or file.name.startswith((f"{NAME}-", _BEFORE)):
                file.unlink()
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise storage.DatasetError(
            f"{folder} is not empty and holds no {SETTINGS_FILE}: not a set of worlds; choose "
            "another directory"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(wanted, indent=1))
    (folder / PROGRESS_FOLDER).mkdir(exist_ok=True)
    return False


def _tidy(folder: epath.Path) -> None:
    """Removes what only an unfinished set needs, and what killed runs left."""
    if (folder / PROGRESS_FOLDER).exists():
        (folder / PROGRESS_FOLDER).rmtree()
    clear_unfinished(folder)


def _tasks(folder: epath.Path, settings: Settings, split: str) -> list[Task]:
    """Shards of 16 scenes, more where there would be above 256 of them; workers play no part."""
    total = settings.num_scenes(split)
    count = min(-(-total // 16), 256)
    paths = [storage.shard_path(folder, NAME, split, index, count) for index in range(count)]
    parts = [range(i * total // count, (i + 1) * total // count) for i in range(count)]
    return [Task(settings, split, *both) for both in zip(parts, paths, strict=True)]


def _finished(task: Task) -> storage.Shard | None:
    if task.note.exists() and task.path.exists():
        return storage.Shard.from_json(json.loads(task.note.read_text()))
    return None


def _write(task: Task) -> storage.Shard:
    clips = make_clips(task.settings, task.split, task.scenes)
    shard = storage.write_shard(task.path, clips)
    write_text(task.note, json.dumps(dataclasses.asdict(shard)))
    return shard
