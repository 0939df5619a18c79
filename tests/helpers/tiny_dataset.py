"""Small datasets for tests: every photograph says by its colour which clip and frame it is."""

import io
import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from PIL import Image

from input_pipeline.loading import EvalSet, open_eval_set
from input_pipeline.preprocess import camera_to_world
from input_pipeline.storage import Clip, Frame, finalize, shard_path, write_shard
from lvsm_jax.batch import Batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.scenes.scene_frame import SceneFrame

NAME = "tiny"
LENGTHS = (30, 12, 45, 28, 3, 60)  # frames of the six clips; 12 and 3 are too short to train on


def colour(clip: int, position: int) -> tuple[int, int, int]:
    """What the photograph of a frame shows, up to the losses of JPEG."""
    return (20 + 40 * (clip % 6), 20 + 5 * position % 220, 128)


def photograph(clip: int, position: int, size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour(clip, position)).save(file, "JPEG", quality=95)
    return file.getvalue()


def camera(clip: int, position: int) -> np.ndarray:
    """World-to-camera matrix of a camera that walks along x and turns about y."""
    angle = 0.02 * position + clip
    rotation = [
        [np.cos(angle), 0, -np.sin(angle)],
        [0, 1, 0],
        [np.sin(angle), 0, np.cos(angle)],
    ]
    centre = np.array([0.1 * position, 0.03 * position**1.5, 0.5 * clip])
    return np.column_stack([rotation, -np.array(rotation) @ centre]).astype(np.float32)


def clip_of(number: int, num_frames: int, replaced_jpegs: Mapping[int, bytes] = {}) -> Clip:
    """Clip `number`, with the photographs at some positions replaced by other bytes."""
    frames = [
        Frame(
            image=replaced_jpegs.get(position, photograph(number, position)),
            normalized_fxfycxcy=np.array([0.75, 1.125, 0.5, 0.5], np.float32),
            w2c=camera(number, position),
            timestamp=position * 33_333,
        )
        for position in range(num_frames)
    ]
    return Clip(key=f"clip{number}", url=f"https://example.org/{number}", frames=frames)


def write_dataset(
    directory: epath.PathLike, clips: Sequence[Clip], split: str = "train", num_shards: int = 2
) -> None:
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(np.arange(len(clips)), num_shards)
    shards = [
        write_shard(shard_path(directory, NAME, split, index, num_shards), [clips[i] for i in part])
        for index, part in enumerate(parts)
    ]
    finalize(directory, NAME, {split: shards})


def write_rooms(directory: epath.PathLike) -> None:
    """Two splits of clips in which a camera walks along walls of waves, with an evaluation index.

    8 clips to train on and 4 held out, 12 frames of 32 × 32 pixels; targets lie in the middle.
    """
    directory = epath.Path(directory)
    shards, index = {}, {}
    for split, numbers in {"train": range(8), "test": range(8, 12)}.items():
        clips = [room(f"room-{split}-{i:06d}", number) for i, number in enumerate(numbers)]
        shards[split] = [write_shard(shard_path(directory, NAME, split, 0, 1), clips)]
        index |= {clip.key: {"context": [1, 11], "target": [5, 6, 7]} for clip in clips}
    index = {key: entry for key, entry in index.items() if key.startswith("room-test")}
    (directory / "evaluation_index.json").write_text(json.dumps(index))
    finalize(directory, NAME, shards)


def room(key: str, number: int, num_frames: int = 12, size: int = 32) -> Clip:
    """A clip whose pictures show waves on a wall two units ahead."""
    rng = np.random.default_rng(number)
    waves, phases = rng.uniform(-8, 8, (3, 2)), rng.uniform(0, 6, 3)
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size - 0.5])
    frames = []
    for position in range(num_frames):
        w2c = np.eye(4, dtype=np.float32)[:3]
        w2c[:, 3] = -np.array([0.08 * position, 0.02 * position, 0.01 * position])
        wall = np.stack([2 * x + 0.08 * position, 2 * y + 0.02 * position], axis=-1)
        colours = 127 + 100 * np.sin(wall @ waves.T + phases)
        file = io.BytesIO()
        Image.fromarray(colours.astype(np.uint8)).save(file, "JPEG", quality=95, subsampling=0)
        normalized = np.array([1, 1, 0.5, 0.5], np.float32)
        frames.append(Frame(file.getvalue(), normalized, w2c, position * 100_000))
    return Clip(key, f"https://example.org/{key}", frames)


def write_six_clips(directory: epath.PathLike) -> None:
    write_dataset(directory, [clip_of(i, n) for i, n in enumerate(LENGTHS)])


def config_of(path, **fields) -> DataConfig:
    return DataConfig(path, image_height=16, num_views=5, num_targets=3, **fields)


def eval_batches(
    config: DataConfig, *, index, batch_size: int, process_index=0, process_count=1, **fields
) -> EvalSet:
    """The clips of an index, with split, inputs and scene frame of the training configuration."""
    same = ("split", "num_inputs", "camera_normalization")
    fields |= {name: getattr(config, name) for name in same}
    evaluation = EvalConfig(index=str(index), batch_size=batch_size, **fields)
    return open_eval_set(
        config, evaluation, process_index=process_index, process_count=process_count
    )


def assert_same(left, right) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def rows_of(batches: list[Batch]) -> list[bytes]:
    """The rows of batches as bytes, in an order of their own."""
    rows = []
    for batch in batches:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
        rows += [b"".join(leaf[i].tobytes() for leaf in leaves) for i in range(len(leaves[0]))]
    return sorted(rows)


def expected_cameras(scene: int, fitted, shown) -> np.ndarray:
    def cameras(positions):
        w2c = [camera(scene, int(position)) for position in positions]
        return np.stack([camera_to_world(matrix) for matrix in w2c])

    return SceneFrame.fit(cameras(fitted)).apply(cameras(shown))
