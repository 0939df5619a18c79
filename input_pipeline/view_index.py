"""Evaluation indexes by rule: inputs far apart, targets between them, and no target is an input.

In a clip of frames in order, two contexts lie at least four fifths of it apart, and the targets,
drawn by a seed, are none of the inputs for any of the numbers of inputs that are asked for. Of
photographs without an order, the inputs are those that have most in common with a neighbourhood,
and the targets are others of it; nothing is drawn. Around an object, four inputs stand at given
places, and targets are drawn by a seed from the other views.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from input_pipeline.camera_table import CameraTable, read_camera_table
from input_pipeline.orbit import gso_views
from input_pipeline.overlap import nearest_views, overlaps
from input_pipeline.sampling import IndexEntry, evaluation_views
from input_pipeline.storage import SplitReader
from lvsm_jax.common.errors import UserError

COUNTS = (1, 2, 4, 8, 16)  # of inputs, between contexts
TARGETS = 3  # of a clip
MIN_OVERLAP = 0.25  # of the views of a neighbourhood with its middle


def make_index(
    dataset: str | os.PathLike, split: str, counts: Iterable[int], seed: int
) -> dict[str, dict]:
    """The index of all clips of a split, see `choose_views`."""
    scenes, counts = SplitReader(dataset, split).scenes, tuple(counts)
    entries = {}
    clips = zip(scenes.key.tolist(), scenes.num_frames.tolist(), strict=True)
    for place, (key, frames) in enumerate(clips):
        try:
            views = choose_views(frames, counts, [seed, place])
        except ValueError as error:
            raise UserError(f"clip {key}: {error}") from error
        entries[str(key)] = dataclasses.asdict(views)
    return entries


def choose_views(num_frames: int, counts: Iterable[int], seed: Sequence[int]) -> IndexEntry:
    """Contexts at least four fifths of a clip apart, and targets that are never an input.

    Raises:
        UserError: the clip has too few frames for targets beside so many inputs.
    """
    rng = np.random.default_rng(seed)
    span = rng.integers(-(-4 * num_frames // 5), num_frames)
    first = int(rng.integers(num_frames - span))
    contexts = first, int(first + span)
    taken = {
        int(position)
        for count in counts
        for position in evaluation_views(IndexEntry(contexts, (first,)), count).inputs
    }
    free = [position for position in range(first + 1, contexts[1]) if position not in taken]
    if len(free) < TARGETS:
        raise UserError(f"{num_frames} frames leave {len(free)} for targets beside the inputs")
    targets = sorted(rng.choice(free, TARGETS, replace=False).tolist())
    return IndexEntry(contexts, tuple(targets))


def make_overlap_index(
    dataset: str | os.PathLike, split: str, num_inputs: int, num_targets: int
) -> dict[str, dict | None]:
    """The index of all clips of a split that has a table of cameras, see `spread_views`.

    None stands for a clip with too few photographs; UserError where all have, or there is no table.
    """
    entries, most = {}, 0
    for key, cameras in cameras_of_clips(dataset, split):
        enough = len(cameras) >= num_inputs + 1
        views = spread_views(cameras, num_inputs, num_targets) if enough else None
        entries[key], most = views and dataclasses.asdict(views), max(most, len(cameras))
    if not any(entries.values()):
        raise UserError(
            f"no clip of split {split!r} of {dataset} has {num_inputs} inputs and a target: the "
            f"largest has {most} photographs"
        )
    return entries


def make_gso_index(
    dataset: str | os.PathLike, split: str, num_targets: int, seed: int
) -> tuple[dict[str, dict | None], dict[str, str]]:
    """The index of all clips of a split of objects, see `gso_views`, and why some have none.

    None stands for a clip without views at those places; UserError where all have none.
    """
    entries, reasons = {}, {}
    for key, cameras in cameras_of_clips(dataset, split):
        try:
            entries[key] = dataclasses.asdict(gso_views(cameras, key, num_targets, seed))
        except UserError as error:
            entries[key], reasons[key] = None, str(error)
    if not any(entries.values()):
        first = next((f"{key} has {why}" for key, why in reasons.items()), "it has no clips")
        raise UserError(f"no clip of split {split!r} of {dataset} has views by this rule: {first}")
    return entries, reasons


def cameras_of_clips(dataset: str | os.PathLike, split: str) -> Iterator[tuple[str, CameraTable]]:
    """Key and cameras of each clip of a split; UserError where it has no table of cameras."""
    reader = SplitReader(dataset, split)
    table = read_camera_table(dataset, split, len(reader))
    if table is None:
        raise UserError(
            f"{dataset} has no table of cameras, cameras-{split}.npz, by which views are chosen: "
            "its clips are frames in order (--by=span)"
        )
    scenes = reader.scenes
    ranges = zip(scenes.first_frame.tolist(), scenes.num_frames.tolist(), strict=True)
    for key, (first, count) in zip(scenes.key.tolist(), ranges, strict=True):
        yield key, table.some(first, count)


def spread_views(cameras: CameraTable, num_inputs: int, num_targets: int) -> IndexEntry:
    """Inputs and targets of one neighbourhood of a clip's photographs, which are fewer than it has.

    The neighbourhood's middle is the view that has most in common with all, and the others those
    that share at least `MIN_OVERLAP` with it, more where these are too few. Inputs are taken one
    after the other: the one by which the views of the neighbourhood gain most, counting for each
    what it has in common with the nearest input. Targets are evenly spaced among the others, in
    their order; there may be fewer than asked for.
    """
    count = len(cameras)
    shared = np.stack([overlaps(cameras, view) for view in range(count)])
    middle = int(shared.sum(axis=1).argmax())
    order, in_common = nearest_views(cameras, middle)
    wanted = max(num_inputs + num_targets - 1, int((in_common >= MIN_OVERLAP).sum()))
    around = np.sort(np.append(order[:wanted], middle))
    inputs = _facilities(shared[np.ix_(around, around)], num_inputs)
    others = np.delete(around, inputs)
    places = np.linspace(0, len(others) - 1, min(num_targets, len(others)) + 2)[1:-1]
    targets = others[np.unique(places.round().astype(int))]
    if len(targets) < min(num_targets, len(others)):  # so many that some fall together
        targets = others[: min(num_targets, len(others))]
    return IndexEntry(tuple(np.sort(around[inputs]).tolist()), tuple(targets.tolist()))


def _facilities(shared: Float64[np.ndarray, "n n"], count: int) -> list[int]:
    """Rows, one after the other, that raise the sum of the columns' largest values most."""
    best, chosen = np.zeros(len(shared)), []
    for _ in range(count):
        gains = np.maximum(shared, best).sum(axis=1)
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, shared[chosen[-1]])
    return chosen
