"""Makes a dataset of one clip, to be overfitted: do cameras, rays and pixels agree?

    python -m experiments.one_clip data/re10k_sample 6b658b1d8562dc85 data/one_clip
    python -m experiments.one_clip data/re10k_sample 6b658b1d8562dc85 data/shuffled \
        --shuffle-cameras

A model that has seen one clip for long should render it well, and should not where the cameras have
changed places between the frames: then no geometry explains the pictures. Both are trained with
`train.py`; experiments/reports/real_clips.md has the commands and what came of them.
"""

import dataclasses
import json

import numpy as np
from etils import epath

from benchmarks.common import module_parser
from input_pipeline.storage import Clip, Frame, SplitReader, finalize, shard_path, write_shard
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text


@program
def main(arguments: list[str]) -> None:
    """Writes the dataset."""
    parser = module_parser("experiments.one_clip", __doc__)
    add = parser.add_argument
    add("dataset", type=path, help="dataset directory to take the clip from")
    add("key", help="of the clip")
    add("output", type=path, help="dataset directory to make")
    add("--split", default="train", help="that holds the clip (train)")
    add("--shuffle-cameras", action="store_true", help="give each frame another frame's camera")
    given = parser.parse_args(arguments)
    output = epath.Path(given.output)
    if output.exists():
        raise UserError(f"{output} exists")
    frames = read_clip(given.dataset, given.split, given.key)
    if given.shuffle_cameras:
        frames = shuffle_cameras(frames)
    output.mkdir(parents=True)
    clip = Clip(given.key, "", frames)
    splits = {
        split: [write_shard(shard_path(output, "clip", split, 0, 1), [clip])]
        for split in ("train", "test")
    }
    finalize(output, "clip", splits)
    write_text(output / "evaluation_index.json", json.dumps(evaluation_index(given.key, frames)))
    print(f"wrote {output}: {len(frames)} frames, as train and as test split")


def read_clip(dataset: epath.PathLike, split: str, key: str) -> list[Frame]:
    """All frames of a clip."""
    reader = SplitReader(dataset, split)
    row = reader.scenes.key.tolist().index(key)
    first = int(reader.scenes.first_frame[row])
    return reader.frames(range(first, first + int(reader.scenes.num_frames[row])))


def shuffle_cameras(frames: list[Frame]) -> list[Frame]:
    """The frames with one another's cameras, none with its own."""
    order = np.random.default_rng(0).permutation(len(frames))
    shuffled = list(frames)
    for taker, giver in zip(order, np.roll(order, 1), strict=True):
        w2c, intrinsics = frames[giver].w2c, frames[giver].normalized_fxfycxcy
        shuffled[taker] = dataclasses.replace(
            frames[taker], w2c=w2c, normalized_fxfycxcy=intrinsics
        )
    return shuffled


def evaluation_index(key: str, frames: list[Frame]) -> dict[str, dict[str, list[int]]]:
    """Targets at a quarter, half and three quarters of the clip, between its ends."""
    last = len(frames) - 1
    return {key: {"context": [0, last], "target": [last // 4, last // 2, 3 * last // 4]}}


if __name__ == "__main__":
    main()
