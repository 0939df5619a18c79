"""Writes the shards of a dataset of rooms, and its evaluation index."""

import dataclasses
import io
import json
import os

import numpy as np
from etils import epath
from PIL import Image

from input_pipeline import storage
from input_pipeline.synthetic import raycast
from input_pipeline.synthetic.rooms import SceneConfig, sample_scene
from input_pipeline.workers import remove_unfinished, run_jobs
from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.files import expand, read_json, write_text

NAME = "rooms"
VERSION = 1  # of the pictures: raise it when the same settings come to give others
SPLITS = ("train", "test")
SETTINGS_FILE = "synthetic.json"
INDEX_FILE = "evaluation_index.json"
PROGRESS_FOLDER = ".progress"  # what is known of finished shards, until the set is complete
NUM_TARGETS = 3  # of a clip in the evaluation index, as in the published protocol
FRAME_INTERVAL = 100_000  # microseconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the dataset depends on."""

    train_scenes: int = 1200  # clips of the train split
    test_scenes: int = 64  # clips of the test split
    frames: int = 12  # frames of a clip
    height: int = 64  # of the pictures, in pixels
    width: int = 64  # of the pictures, in pixels
    seed: int = 0  # another seed gives other rooms
    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)  # how hard the rooms are

    def __post_init__(self):
        ones = dict.fromkeys(("train_scenes", "test_scenes", "height", "width"), 1)
        check_at_least("rooms", self, **ones, frames=NUM_TARGETS + 2, seed=0)

    def num_scenes(self, split: str) -> int:
        """Clips of a split."""
        return {"train": self.train_scenes, "test": self.test_scenes}[split]

    def to_json(self) -> dict:
        """These settings and the version of the pictures, as they are kept with the data."""
        return json.loads(json.dumps({"version": VERSION, **dataclasses.asdict(self)}))


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


def make_clip(settings: Settings, split: str, number: int) -> storage.Clip:
    """Draws and films scene `number` of a split; equal arguments give equal bytes."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), number])
    size = settings.height, settings.width
    scene = sample_scene(rng, settings.scene, settings.frames, aspect=size[1] / size[0])
    frames, intrinsics = [], scene.normalized_fxfycxcy
    for position, w2c in enumerate(scene.w2c):
        jpeg = io.BytesIO()
        picture = Image.fromarray(raycast.render(scene.room, w2c, intrinsics, *size))
        picture.save(jpeg, "JPEG", quality=95, subsampling=0)  # 4:4:4
        time = position * FRAME_INTERVAL
        frames.append(storage.Frame(jpeg.getvalue(), intrinsics, w2c, time))
    url = f"synthetic://rooms/seed-{settings.seed}/{split}/{number}"
    return storage.Clip(f"room-{split}-{number:06d}", url, frames)


def evaluation_index(settings: Settings) -> dict[str, dict[str, list[int]]]:
    """For each test clip two context frames, most of the clip apart, and targets half-way between.

    Targets keep about a third of the span away from both: next to a context frame, copying it
    would do.
    """
    index, end = {}, settings.frames - 1
    for number in range(settings.test_scenes):
        rng = np.random.default_rng([settings.seed, len(SPLITS), number])
        span = int(rng.integers(max(NUM_TARGETS + 1, -(-3 * end // 4)), end, endpoint=True))
        first = int(rng.integers(0, end - span, endpoint=True))
        away = (span - 1) // 3
        between = np.arange(first + away, first + span - away + 1)
        targets = sorted(rng.choice(between, NUM_TARGETS, replace=False).tolist())
        context = [first, first + span]
        index[f"room-test-{number:06d}"] = {"context": context, "target": targets}
    return index


def generate(
    directory: str, settings: Settings, workers: int | None = None, overwrite: bool = False
) -> bool:
    """Writes the dataset, or what is missing of it; False when it was already complete.

    By default as many processes write as the machine has cores. A set that was made with other
    settings is replaced where `overwrite` says so, and otherwise a DatasetError, as is a directory
    that holds something else.
    """
    folder = expand(directory)
    if _prepare(folder, settings, overwrite):
        _tidy(folder)
        return False
    tasks = [task for split in SPLITS for task in _tasks(folder, settings, split)]
    finished = {task: _finished(task) for task in tasks}
    workers = workers or os.cpu_count() or 1
    shards = run_jobs(finished, _write, workers=workers, label="rooms", unit=" scenes")
    write_text(folder / INDEX_FILE, json.dumps(evaluation_index(settings), indent=1))
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
                f"{folder} holds rooms made with other settings ({'; '.join(changes)}): choose "
                "another directory, or replace them with --overwrite"
            )
        # Nothing but a set of rooms is removed; what declares it complete goes first.
        (folder / "dataset_info.json").unlink(missing_ok=True)
        _tidy(folder)
        ours = (INDEX_FILE, "features.json", *(f"scenes-{split}.npz" for split in SPLITS))
        for file in folder.iterdir():
            if file.name in ours or file.name.startswith(f"{NAME}-"):
                file.unlink()
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise storage.DatasetError(
            f"{folder} is not empty and holds no {SETTINGS_FILE}: not a set of rooms; choose "
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
    remove_unfinished(folder)


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
    clips = (make_clip(task.settings, task.split, number) for number in task.scenes)
    shard = storage.write_shard(task.path, clips)
    write_text(task.note, json.dumps(dataclasses.asdict(shard)))
    return shard
