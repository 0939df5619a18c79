"""Batches for training and evaluation.

Frames are read and prepared in threads or worker processes, in pure NumPy and Pillow. The order of
samples is a function of the seed alone, and each process takes its share of every global batch: the
batch at a step is the same set for any number of processes or workers, and resuming is starting at
a later step.
"""

import atexit
import collections
import copy
import dataclasses
import functools
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int64

from input_pipeline import examples, sampling
from input_pipeline.alpha import read_alpha
from input_pipeline.camera_table import read_camera_table
from input_pipeline.preprocess import Crop
from input_pipeline.storage import SceneTable, SplitReader
from input_pipeline.workers import WorkerError, run_task, worker_pool
from lvsm_jax.batch import Batch, to_batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand

Load = Callable[[Any], dict[str, Any]]

_MAX_THREADS = 16  # beyond this, threads of one Python process mostly wait for each other


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
    sources = open_sources(config)
    # What grain gives the third transformation after a seed: this one says so itself, as the draws
    # are not to change with its place in the chain.
    sample_seed = int(np.random.SeedSequence([seed, 3]).generate_state(1)[0])
    clips = _mixed([len(source.rows) for source in sources], config.mix_weights, seed)
    draws = clips.map_with_index(lambda index, clip: (index // batch_size, *clip)).random_map(
        # Copied, for grain uses its generators again.
        lambda draw, rng: (*draw, copy.deepcopy(rng)),
        seed=sample_seed,
    )
    share = draws[process_index::process_count]
    load = functools.partial(examples.training_example, sources, seed)
    return _prefetched(share, load, rows_per_process, config, start_step)


def open_sources(config: DataConfig) -> tuple[examples.Source, ...]:
    """The datasets to train on, `data.path` first; UserError where one cannot be used."""
    sources, first_scene = [], 0
    for path in (config.path, *config.mix):
        source = _open_source(dataclasses.replace(config, path=path, mix=(), mix_weights=()))
        loader = dataclasses.replace(source.loader, first_scene=first_scene)
        sources.append(examples.Source(loader, source.rows))
        first_scene += len(loader.reader.scenes)
    first, *others = (source.loader for source in sources)
    for other in others:
        if other.image_shape != first.image_shape:
            shapes = ("{1}×{0}".format(*loader.image_shape) for loader in (first, other))
            told = " and ".join(shapes)
            raise UserError(
                f"images of {first.config.path} and {other.config.path} are {told} pixels, and "
                "those of a batch have one shape: train with data.square_crop"
            )
    return tuple(sources)


def _open_source(config: DataConfig) -> examples.Source:
    reader = SplitReader(config.path, config.split)
    cameras = None
    if config.sampling in ("auto", "overlap", "structured"):
        cameras = read_camera_table(config.path, config.split, len(reader))
        if cameras is None and config.sampling != "auto":
            raise UserError(
                f"{config.path} has no table of cameras, cameras-{config.split}.npz, by which "
                f"views are drawn (data.sampling={config.sampling}): lvsm import-scenes and "
                "import-objects make one"
            )
    in_order = cameras is None and config.sampling != "random"
    if not in_order:
        config.check_apart("photographs")
    rows = _usable_rows(reader.scenes, config, in_order=in_order)
    loader = examples.ExampleLoader.open(reader, config, int(rows[0]))
    return examples.Source(dataclasses.replace(loader, cameras=cameras), rows)


def _mixed(counts: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Without end, which dataset and which of so many clips of it: all of each once an epoch.

    Datasets come as often as the weights say, by the number of the sample alone.
    """
    streams = [
        grain.MapDataset.range(count)
        .seed(seed)
        .shuffle()
        .repeat()
        .map(functools.partial(_numbered, number))
        for number, count in enumerate(counts)
    ]
    return grain.MapDataset.mix(streams, weights or None) if len(streams) > 1 else streams[0]


def _numbered(number: int, choice: int) -> tuple[int, int]:
    return number, choice


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """The clips of an evaluation index, in its order; iterating gives all batches, once.

    Rows that fill up the last batch repeat the last clip and have `valid` False. Targets that fill
    up a clip to the number of that with most repeat its last and have a `frame` of -1.
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

    def some(self, positions: Sequence[int]) -> "EvalSet":
        """The clips at these positions, in batches of the same size."""
        views = tuple(self.views[position] for position in positions)
        return dataclasses.replace(self, rows=self.rows[list(positions)], views=views)

    def __len__(self) -> int:
        return -(-self.num_scenes // self.evaluation.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        reader = SplitReader(self.config.path, self.config.split)
        loader = examples.ExampleLoader.open(reader, self.config, int(self.rows[0]))
        stated = read_alpha(self.config.path)
        loader = dataclasses.replace(loader, masked=stated is not None and stated.transparent)
        crop = Crop(*loader.image_shape, self.evaluation.crop_share, self.evaluation.crop_place)
        if crop == Crop(*loader.image_shape):
            crop = None  # the published preprocessing
        batch_size = self.evaluation.batch_size
        share = range(len(self) * batch_size)[self.process_index :: self.process_count]
        load = functools.partial(examples.evaluation_example, loader, self.rows, self.views, crop)
        return _prefetched(share, load, batch_size // self.process_count, self.config)


def arrange_inputs(eval_set: EvalSet, arrangement: str, count: int) -> EvalSet:
    """The same clips and targets, with `count` inputs by `sampling.arranged_views`."""
    index, views = (
        sampling.read_index(evaluation_index(eval_set.evaluation, eval_set.config.path)),
        [],
    )
    for key in eval_set.keys:
        try:
            views.append(sampling.arranged_views(index[key], count, arrangement))
        except UserError as error:
            raise UserError(f"scene {key}: {error}") from None
    return dataclasses.replace(eval_set, views=tuple(views))


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
    changes = {name: getattr(evaluation, name) for name in differing}
    changes["background"] = evaluation.background or data.background
    config = dataclasses.replace(data, **changes)
    index = evaluation_index(evaluation, data.path)
    if not index.exists():
        raise UserError(
            f"there is no evaluation index {index}: lvsm make-index makes one of a dataset, and "
            "--config.eval.index names one elsewhere"
        )
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
    views = []
    for key, num_frames in zip(present, scenes.num_frames[rows].tolist(), strict=True):
        try:
            _check_entry(entries[key], num_frames)
            views.append(sampling.evaluation_views(entries[key], config.num_inputs))
        except UserError as error:
            raise UserError(f"index {index}, scene {key}: {error}") from None
    counts = {"num_skipped_null": len(table) - len(entries), "num_missing": len(missing)}
    processes = {"process_index": process_index, "process_count": process_count}
    views = tuple(views)
    return EvalSet(scenes, rows, views, config=config, evaluation=evaluation, **counts, **processes)


def _check_entry(entry: sampling.IndexEntry, num_frames: int) -> None:
    if outside := [p for p in entry.context + entry.target if not 0 <= p < num_frames]:
        raise UserError(f"positions {outside} are outside the clip's {num_frames} frames")


def _rows_per_process(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} is not one of {process_count} processes")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes"
        )
    return batch_size // process_count


def _usable_rows(
    scenes: SceneTable, config: DataConfig, *, in_order: bool
) -> Int64[np.ndarray, " n"]:
    if not in_order:
        usable = scenes.num_frames >= config.num_views
        needed, hint = f"{config.num_views} photographs for as many views", "data.num_views"
    else:
        usable = sampling.usable_clips(scenes.num_frames, config)
        span = f"{config.min_span} to {config.max_span} frames"
        needed, hint = f"a span of {span} for {config.num_views} views", "data.min_span"
    rows = np.flatnonzero(usable).astype(np.int64)
    if len(rows) == 0:
        longest = max(scenes.num_frames, default=0)
        raise UserError(
            f"split {config.split!r} of {config.path} has no usable clip: none of {len(scenes)} "
            f"has {needed} (the longest has {longest} frames); lower --config.{hint}"
        )
    if rejected := len(scenes) - len(rows):
        message = "%s, split %s: %d of %d clips are rejected, as too short for %s"
        logging.info(message, config.path, config.split, rejected, len(scenes), needed)
    return rows


def _prefetched(
    samples: Sequence[Any] | grain.MapDataset,
    load: Load,
    rows: int,
    config: DataConfig,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Batches of `rows` consecutive samples, from batch `start_step` on, loaded ahead of their use.

    `load` gives the nested dict of arrays of a sample (see `to_batch`), which is a few picklable
    bytes; worker processes import its module, which must not import JAX. Samples left over at the
    end are dropped. Closing the iterator (or dropping it) stops the workers.
    """
    steps = range(start_step, len(samples) // rows)
    drawn = ([samples[step * rows + row] for row in range(rows)] for step in steps)
    batches = _batches(drawn, load, config)
    # A program may end without closing: then it is done while Python is still whole.
    atexit.register(_close_if_alive, weakref.ref(batches))
    return batches


def _batches(samples: Iterable[list[Any]], load: Load, config: DataConfig) -> Iterator[Batch]:
    ahead = config.prefetch * max(config.num_workers, 1)
    if config.num_workers:
        # When the whole process group is interrupted the parent can finish its step and save.
        pool = worker_pool(config.num_workers, on_interrupt=signal.SIG_IGN, task=load)
        task = run_task
    else:
        threads = min(os.cpu_count() or 1, _MAX_THREADS)
        pool, task = futures.ThreadPoolExecutor(threads), load
    stacking = futures.ThreadPoolExecutor(1)  # while the batch before is in use
    waiting: collections.deque[futures.Future[Batch]] = collections.deque()
    try:
        for batch in samples:
            parts = [pool.submit(task, sample) for sample in batch]
            waiting.append(stacking.submit(_stacked, parts))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except futures.process.BrokenProcessPool as error:
        raise WorkerError(
            "a worker process that loads data was killed (out of memory?) or could not start: "
            "lower data.num_workers or data.prefetch; scripts must guard what they run by "
            'if __name__ == "__main__"'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        stacking.shutdown(cancel_futures=True)


def _close_if_alive(batches: weakref.ref) -> None:
    if (alive := batches()) is not None:
        alive.close()


def _stacked(parts: list[futures.Future[dict[str, Any]]]) -> Batch:
    samples = [part.result() for part in parts]
    return to_batch(jax.tree.map(lambda *leaves: np.stack(leaves), *samples))
