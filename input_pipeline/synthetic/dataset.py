"""Writes the shards of a dataset of rooms, and its evaluation index."""

import dataclasses
import io
import json
import os

import numpy as np
from etils import epath
from PIL import Image

from input_pipeline import storage
from input_pipeline.shard_runner import remove_unfinished, run_jobs
from input_pipeline.synthetic import raycast
from input_pipeline.synthetic.rooms import SceneConfig, sample_scene
from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.files import expand, write_text

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

    directory: str
    settings: Settings
    split: str
    index: int
    count: int

    @property
    def scenes(self) -> range:
        """Numbers of the scenes of this shard."""
        total = self.settings.num_scenes(self.split)
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    @property
    def path(self) -> epath.Path:
        """File of this shard."""
        return storage.shard_path(self.directory, NAME, self.split, self.index, self.count)

    @property
    def note(self) -> epath.Path:
        """File that remembers, until the set is complete, that this shard is."""
        return self.path.parent / PROGRESS_FOLDER / f"{self.path.name}.json"


def scene_key(split: str, number: int) -> str:
    """Key of a scene in the scene table and the evaluation index."""
    return f"room-{split}-{number:06d}"


def make_clip(settings: Settings, split: str, number: int) -> storage.Clip:
    """Draws and films scene `number` of a split; equal arguments give equal bytes."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), number])
    size = settings.height, settings.width
    scene = sample_scene(rng, settings.scene, settings.frames, aspect=size[1] / size[0])
    frames = []
    for position, w2c in enumerate(scene.w2c):
        image = raycast.render(scene.room, w2c, scene.normalized_fxfycxcy, *size)
        timestamp = position * FRAME_INTERVAL
        frames.append(storage.Frame(_jpeg(image), scene.normalized_fxfycxcy, w2c, timestamp))
    url = f"synthetic://rooms/seed-{settings.seed}/{split}/{number}"
    return storage.Clip(scene_key(split, number), url, frames)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)  # 4:4:4
    return buffer.getvalue()


def evaluation_index(settings: Settings) -> dict[str, dict[str, list[int]]]:
    """For each test clip two context frames, most of the clip apart, and targets half-way between.

    Targets keep about a third of the span away from both: next to a context frame, copying it
    would do.
    """
    index = {}
    for number in range(settings.test_scenes):
        rng = np.random.default_rng([settings.seed, len(SPLITS), number])
        end = settings.frames - 1
        span = int(rng.integers(max(NUM_TARGETS + 1, -(-3 * end // 4)), end, endpoint=True))
        first = int(rng.integers(0, end - span, endpoint=True))
        away = (span - 1) // 3
        between = np.arange(first + away, first + span - away + 1)
        targets = rng.choice(between, NUM_TARGETS, replace=False)
        index[scene_key("test", number)] = {
            "context": [first, first + span],
            "target": sorted(targets.tolist()),
        }
    return index


def generate(
    directory: str, settings: Settings, workers: int | None = None, overwrite: bool = False
) -> bool:
    """Writes the dataset, or what is missing of it; False when it was already complete.

    Args:
        directory: where; created if need be.
        settings: what the set is to hold.
        workers: processes; as many as the machine has cores by default.
        overwrite: replace a set that was made with other settings.

    Raises:
        DatasetError: the directory holds something else, or a set made with other settings.
    """
    folder = expand(directory)
    if _prepare(folder, settings, overwrite):
        _tidy(folder)
        return False
    tasks = [task for split in SPLITS for task in _tasks(directory, settings, split)]
    shards = run_jobs(
        {task: _finished(task) for task in tasks},
        _write,
        size=lambda task: len(task.scenes),
        workers=workers or os.cpu_count() or 1,
        label="rooms",
        unit=" scenes",
    )
    write_text(folder / INDEX_FILE, json.dumps(evaluation_index(settings), indent=1))
    splits = {split: [shards[task] for task in tasks if task.split == split] for split in SPLITS}
    storage.finalize(directory, NAME, splits)
    _tidy(folder)
    return True


def _prepare(folder: epath.Path, settings: Settings, overwrite: bool) -> bool:
    """Makes the directory ready to write to; True if there is nothing left to write."""
    wanted, path = settings.to_json(), folder / SETTINGS_FILE
    if path.exists():
        found = json.loads(path.read_text())
        if found == wanted:
            return (folder / "dataset_info.json").exists()
        if not overwrite:
            other = [key for key in wanted if found.get(key) != wanted[key]]
            changes = (f"{key} {found.get(key)} there, {wanted[key]} asked for" for key in other)
            raise storage.DatasetError(
                f"{folder} holds rooms made with other settings ({'; '.join(changes)}): choose "
                "another directory, or replace them with --overwrite"
            )
        _remove(folder)
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


def _remove(folder: epath.Path) -> None:
    """Removes a set of rooms, and nothing else; what declares it complete goes first."""
    (folder / "dataset_info.json").unlink(missing_ok=True)
    _tidy(folder)
    ours = (INDEX_FILE, "features.json", *(f"scenes-{split}.npz" for split in SPLITS))
    for file in folder.iterdir():
        if file.name in ours or file.name.startswith(f"{NAME}-"):
            file.unlink()


def _tasks(directory: str, settings: Settings, split: str) -> list[Task]:
    """Shards of 16 scenes, more where there would be above 256 of them; workers play no part."""
    total = settings.num_scenes(split)
    count = min(-(-total // 16), 256)
    return [Task(directory, settings, split, index, count) for index in range(count)]


def _finished(task: Task) -> storage.Shard | None:
    if task.note.exists() and task.path.exists():
        return storage.Shard.from_json(json.loads(task.note.read_text()))
    return None


def _write(task: Task) -> storage.Shard:
    clips = (make_clip(task.settings, task.split, number) for number in task.scenes)
    shard = storage.write_shard(task.path, clips)
    write_text(task.note, json.dumps(dataclasses.asdict(shard)))
    return shard
