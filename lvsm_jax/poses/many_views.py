"""Three photographs and more: mapped in two ways, and judged. In the worker's process."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pycolmap

from lvsm_jax.poses import features, judge, mapping
from lvsm_jax.poses.gates import Map, Verdict
from lvsm_jax.poses.pictures import Upright

# Times the reprojection error with shared cameras over that with one for each photograph, above
# which photographs do not share a camera. Those that did had 1.01 to 1.05, two zooms 1.15 to 2.8.
_SHARED = 1.1

Told = Callable[[str, int, int], None]  # the stage, how many are done, and of how many
Found = tuple[pycolmap.Reconstruction | None, Verdict]


class _Maps(NamedTuple):
    """What both ways of mapping made of a database."""

    incremental: pycolmap.Reconstruction | None
    best: pycolmap.Reconstruction | None  # the one that is believed
    verdict: Verdict


def map_many(
    database: pathlib.Path,
    folder: pathlib.Path,
    photographs: Sequence[Upright],
    told: Told,
    *,
    one_camera: bool,
) -> Found:
    """The map of photographs by the matches of the database, and the verdict on it.

    There is a camera for each group of photographs. Without EXIF those of one size may still be of
    several zooms, unless `one_camera` took them all: there is one for each photograph where they do
    not fit otherwise.
    """
    shared = _map(database, folder, photographs, told)
    groups = {photograph.group for photograph in photographs}
    sure = one_camera or any(one.focal for one in photographs)
    if sure or len(groups) == len(photographs):
        return shared.best, shared.verdict
    separate = database.with_name("separate.db")
    features.separate_cameras(database, separate, photographs)
    told("mapping, a camera each", 0, 0)
    alone = mapping.map_incrementally(separate, folder)
    gain = _gain(shared.incremental, alone)
    if not shared.verdict.refused and gain <= _SHARED:
        return shared.best, shared.verdict
    each = _map(separate, folder, photographs, told, incremental=alone)
    if not each.verdict.refused:
        note = "each photograph has a camera of its own: one for all of a size does not fit"
        return each.best, dataclasses.replace(each.verdict, notes=[*each.verdict.notes, note])
    if shared.verdict.refused:
        return None, shared.verdict
    refused = (
        f"{judge.DISBELIEF}photographs of one size do not fit one zoom (reprojection errors are "
        f"{gain:.2f} times those with a camera each), and with a camera each "
        f"{each.verdict.refused.removeprefix(judge.DISBELIEF)}"
    )
    return None, dataclasses.replace(each.verdict, refused=refused)


def _gain(shared: pycolmap.Reconstruction | None, alone: pycolmap.Reconstruction | None) -> float:
    """How many times the reprojection error is smaller with a camera for each photograph."""
    if shared is None or alone is None or alone.num_reg_images() < shared.num_reg_images():
        return 1.0
    error = alone.compute_mean_reprojection_error()
    return shared.compute_mean_reprojection_error() / max(error, 1e-9)


def _map(
    database: pathlib.Path,
    folder: pathlib.Path,
    photographs: Sequence[Upright],
    told: Told,
    incremental: pycolmap.Reconstruction | None = None,
) -> _Maps:
    """Maps in both ways, one of which may be there, and again where one of them stands alone."""
    count, joined = len(photographs), 2

    def on_next() -> None:
        nonlocal joined
        joined = min(joined + 1, count)
        told("mapping", joined, count)

    def described(method: str, made: pycolmap.Reconstruction | None) -> list[Map]:
        return [] if made is None else [mapping.describe(made, method, photographs)]

    def again(best: Map) -> list[Map]:
        maps = []
        for seed in mapping.OTHER_SEEDS:
            told("mapping again", 0, 0)
            made = mapping.METHODS[best.method](database, folder, seed)
            maps += described(best.method, made)
        return maps if len(maps) == len(mapping.OTHER_SEEDS) else []

    if incremental is None:
        told("mapping", 0, count)
        incremental = mapping.map_incrementally(database, folder, told=on_next)
    told("mapping at once", 0, 0)
    made = {
        mapping.INCREMENTAL: incremental,
        mapping.GLOBAL: mapping.map_globally(database, folder),
    }
    maps = [one for method, some in made.items() for one in described(method, some)]
    focal_by_exif = {photograph.name: photograph.focal for photograph in photographs}
    names = [photograph.name for photograph in photographs]
    best, verdict = judge.choose(maps, names, focal_by_exif, again)
    return _Maps(incremental, None if best is None else made[best.method], verdict)
