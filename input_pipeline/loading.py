"""Batches for training and evaluation.

Frames are read and prepared in threads or worker processes, in pure NumPy and Pillow. The order of
samples is a function of the seed alone, and each process takes its share of every global batch: the
batch at a step is the same set for any number of processes or workers, and resuming is starting at
a later step.
"""

import copy
import dataclasses
import functools
import os
from collections.abc import Iterator

import grain
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int64

from input_pipeline import examples, sampling
from input_pipeline.prefetch import prefetched_batches
from input_pipeline.preprocess import Crop
from input_pipeline.storage import SceneTable, SplitReader
from lvsm_jax.batch import Batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand


def train_batches(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches of training samples without end; each epoch shows every usable clip once.

    Number of inputs and shape of the images may differ from batch to batch, where `config` asks for
    that: they are functions of seed and step, the same in all processes. Skipping steps costs
    nothing. The iterator has a `close` method, which stops its threads or worker processes.

    There are `batch_size` samples in the global batch; this process gets the share `process_index`,
    `batch_size // process_count` rows. UserError where arguments do not go together or no clip of
    the split is usable; FrameError, while iterating, for a bad frame where `config` says "error".
    """
    config.check_training()
    rows_per_process = _rows_per_process(batch_size, process_index, process_count)
    reader = SplitReader(config.path, config.split)
    rows = _usable_rows(reader.scenes, config)
    loader = examples.ExampleLoader.open(reader, config, int(rows[0]))
    # What grain gives the third transformation after a seed: this one says so itself, as the draws
    # are not to change with its place in the chain.
    sample_seed = int(np.random.SeedSequence([seed, 3]).generate_state(1)[0])
    clips = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    draws = clips.map_with_index(lambda index, choice: (index // batch_size, choice)).random_map(
        # Copied, for grain uses its generators again.
        lambda draw, rng: examples.TrainingDraw(*draw, copy.deepcopy(rng)),
        seed=sample_seed,
    )
    share = draws[process_index::process_count]
    load = functools.partial(examples.training_example, loader, rows, seed)
    return prefetched_batches(share, load, rows_per_process, config, start_step)


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """The clips of an evaluation index, in its order; iterating gives all batches, once.

    Rows that fill up the last batch repeat the last clip and have `valid` False.
    """

    scenes: SceneTable  # the scene table, whose rows `Batch.scene` names
    rows: Int64[np.ndarray, " n"]  # rows of the evaluated clips
    views: tuple[sampling.ViewSample, ...]  # the views of each
    num_skipped_null: int  # entries of the index that are null, as published
    num_missing: int  # entries whose clips the dataset lacks (only where that was allowed)
    config: DataConfig  # where the dataset is and how frames are prepared
    evaluation: EvalConfig  # of its fields, batch_size and the crop's count here
    process_index: int  # which share of each batch iterating gives
    process_count: int  # number of shares

    @property
    def num_scenes(self) -> int:
        """Number of clips that are evaluated, over all processes."""
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        """Keys of the evaluated clips."""
        return [str(key) for key in self.scenes.key[self.rows]]

    def __len__(self) -> int:
        return -(-self.num_scenes // self.evaluation.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        reader = SplitReader(self.config.path, self.config.split)
        loader = examples.ExampleLoader.open(reader, self.config, int(self.rows[0]))
        window = {"share": self.evaluation.crop_share, "place": self.evaluation.crop_place}
        crop = Crop(*loader.image_shape, **window)
        if crop == Crop(*loader.image_shape):
            crop = None  # the published preprocessing
        batch_size = self.evaluation.batch_size
        share = range(len(self) * batch_size)[self.process_index :: self.process_count]
        load = functools.partial(examples.evaluation_example, loader, self.rows, self.views, crop)
        return prefetched_batches(share, load, batch_size // self.process_count, self.config)


def evaluation_index(evaluation: EvalConfig, dataset: str | os.PathLike) -> epath.Path:
    """The evaluation index: as configured, else the one inside the dataset."""
    return expand(evaluation.index or expand(dataset) / "evaluation_index.json")


def open_eval_set(
    data: DataConfig,
    evaluation: EvalConfig,
    *,
    max_scenes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalSet:
    """The clips that an evaluation index names, in the split that `evaluation` names.

    Null entries of the index are skipped and counted. Of `data`, numbers and spans of training
    views do not matter. At most `max_scenes` clips are taken, if `evaluation` does not ask for
    fewer. Shares of processes are as in `train_batches`. UserError where arguments, index and
    dataset do not go together.
    """
    _rows_per_process(evaluation.batch_size, process_index, process_count)
    differing = ("split", "num_inputs", "camera_normalization")
    config = dataclasses.replace(data, **{name: getattr(evaluation, name) for name in differing})
    index = evaluation_index(evaluation, data.path)
    scenes = SplitReader(config.path, config.split).scenes
    table = sampling.read_index(index)
    entries = {key: entry for key, entry in table.items() if entry is not None}
    row_of = {key: row for row, key in enumerate(scenes.key.tolist())}
    missing = [key for key in entries if key not in row_of]
    if missing and not evaluation.allow_missing:
        raise UserError(
            f"{len(missing)} of the {len(entries)} clips of index {index} are not in split "
            f"{config.split!r} of {config.path}: {', '.join(missing[:5])}"
            + (", …" if len(missing) > 5 else "")
            + "; to leave them out, set --config.eval.allow_missing"
        )
    limits = [limit for limit in (max_scenes, evaluation.max_scenes) if limit]
    present = [key for key in entries if key in row_of][: min(limits, default=None)]
    if not present:
        raise UserError(
            f"index {index} names no clip of split {config.split!r} of {config.path} "
            f"({len(table) - len(entries)} null entries, {len(missing)} missing clips)"
        )
    rows = np.array([row_of[key] for key in present], np.int64)
    first, views = entries[present[0]], []
    for key, num_frames in zip(present, scenes.num_frames[rows].tolist(), strict=True):
        try:
            _check_entry(entries[key], num_frames, len(first.target))
            views.append(sampling.evaluation_views(entries[key], config.num_inputs))
        except UserError as error:
            raise UserError(f"index {index}, scene {key}: {error}") from None
    return EvalSet(
        scenes=scenes,
        rows=rows,
        views=tuple(views),
        num_skipped_null=len(table) - len(entries),
        num_missing=len(missing),
        config=config,
        evaluation=evaluation,
        process_index=process_index,
        process_count=process_count,
    )


def _check_entry(entry: sampling.IndexEntry, num_frames: int, num_targets: int) -> None:
    if outside := [p for p in entry.context + entry.target if not 0 <= p < num_frames]:
        raise UserError(f"positions {outside} are outside the clip's {num_frames} frames")
    if len(entry.target) != num_targets:
        raise UserError(
            f"{len(entry.target)} targets, where the first clip has {num_targets}; all must have "
            "the same number"
        )


def _rows_per_process(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} is not one of {process_count} processes")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes"
        )
    return batch_size // process_count


def _usable_rows(scenes: SceneTable, config: DataConfig) -> Int64[np.ndarray, " n"]:
    rows = np.flatnonzero(sampling.usable_clips(scenes.num_frames, config)).astype(np.int64)
    needed = f"a span of {config.min_span} to {config.max_span} frames for {config.num_views} views"
    if len(rows) == 0:
        longest = max(scenes.num_frames, default=0)
        raise UserError(
            f"split {config.split!r} of {config.path} has no usable clip: none of {len(scenes)} "
            f"has {needed} (the longest has {longest} frames); lower --config.data.min_span"
        )
    if rejected := len(scenes) - len(rows):
        message = "%s, split %s: %d of %d clips are rejected, as too short for %s"
        logging.info(message, config.path, config.split, rejected, len(scenes), needed)
    return rows
