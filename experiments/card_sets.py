"""Held-out views by rule: photographs of several sources, and worlds, with inputs placed alike.

A window is a stretch of views in the order in which they were taken. Its targets lie inside it and
are the same for any inputs; inputs are views of the window that are no target. They are `spread`
evenly from its first view to its last, or `contiguous`, neighbours in its middle; one input is the
middle one. Targets between spread inputs ask for what lies between them; beside contiguous ones,
for what they hardly see.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from input_pipeline.loading import arrange_inputs, open_eval_set
from input_pipeline.re10k import __main__ as import_re10k
from input_pipeline.sampling import IndexEntry, read_index
from input_pipeline.storage import Clip, Frame, SplitReader, finalize, shard_path, write_shard
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text
from lvsm_jax.evaluation.scoring import EvalSet
from lvsm_jax.scenes.readers import ScenePhotograph, read_scene

SPLIT = "test"  # of all datasets here
BATCH = 8  # windows at a time


@dataclasses.dataclass(frozen=True)
class CardSet:
    """Views that a model is scored on.

    Attributes:
        name: one word, the name in JSON.
        title: what it is.
        rule: which views, in words.
        open: gives the views for an arrangement and a number of inputs.
    """

    name: str
    title: str
    rule: str
    open: Callable[[str, int], EvalSet]


def photo_sets(data: pathlib.Path, work: pathlib.Path, settings: DataConfig) -> Iterator[CardSet]:
    """The sets of photographs that there are in a folder of data; `work` is a folder to write to.

    `re10k_sample/` holds pixelSplat's chunks and index; `hololens_office/` and the folders in
    `strecha/` are scenes with cameras.json. UserError where there is none of them.
    """
    found = False
    if (data / "re10k_sample").is_dir():
        found = True
        yield _clips(data / "re10k_sample", work / "re10k", settings)
    if (data / "hololens_office").is_dir():
        found = True
        title = "hololens_office: a walk through an office, 187 photographs"
        scenes = [data / "hololens_office"]
        yield _scenes("hololens", title, scenes, 25, 3, work / "hololens", settings)
    if scenes := sorted(file.parent for file in (data / "strecha").glob("*/cameras.json")):
        found = True
        title = "strecha: four buildings outdoors, wide baselines, 76 photographs"
        yield _scenes("strecha", title, scenes, 10, 2, work / "strecha", settings)
    if not found:
        raise UserError(f"{data} holds none of re10k_sample, hololens_office and strecha")


def worlds_set(count: int, settings: DataConfig, config: Mapping[str, Any]) -> CardSet:
    """Held-out worlds of a config's section `worlds`, or of its defaults where it has none."""
    from lvsm_jax.worlds.config import WorldsConfig
    from lvsm_jax.worlds.held_out import open_worlds

    told = ml_collections.ConfigDict({"worlds": config.get("worlds", {})})
    worlds = section(told, "worlds", WorldsConfig)

    def open_set(arrangement: str, inputs: int) -> EvalSet:
        views = {"num_inputs": inputs, "world_inputs": arrangement, "worlds": count}
        return open_worlds(settings, worlds, EvalConfig(batch_size=BATCH, **views))

    rule = "16 views along a path, 3 of them targets."
    return CardSet("worlds", f"{count} held-out worlds", rule, open_set)


def _clips(chunks: pathlib.Path, work: pathlib.Path, settings: DataConfig) -> CardSet:
    """RealEstate10K clips with the index's targets; a window lasts from context to context."""
    with contextlib.redirect_stdout(sys.stderr):
        import_re10k.run(chunks, work, splits=[SPLIT])
    keys = set(SplitReader(work, SPLIT).scenes.key.tolist())
    index = read_index(chunks / "evaluation_index.json")
    windows = {key: entry for key, entry in index.items() if entry and key in keys}
    rule = (
        "The published index's targets; a window lasts from one of its contexts to the other, so "
        "that two spread inputs are the published ones."
    )
    title = f"RealEstate10K: {len(windows)} test clips"
    return CardSet("re10k", title, rule, _opener(windows, work, settings))


def _scenes(
    name: str,
    title: str,
    folders: Sequence[pathlib.Path],
    length: int,
    targets: int,
    work: pathlib.Path,
    settings: DataConfig,
) -> CardSet:
    """Scenes cut into windows of `length` photographs, each a clip; a shorter rest is left out."""
    clips = []
    for folder in folders:
        photographs = read_scene(folder).photographs
        for first in range(0, len(photographs) - length + 1, length):
            frames = [_frame(photograph) for photograph in photographs[first : first + length]]
            clips.append(Clip(f"{folder.name}-{first}", "", frames))
    if not clips:
        raise UserError(f"{folders[0].parent}: no scene has {length} photographs")
    work.mkdir(parents=True)
    finalize(work, name, {SPLIT: [write_shard(shard_path(work, name, SPLIT, 0, 1), clips)]})
    inner = tuple(length * (i + 1) // (targets + 1) for i in range(targets))
    windows = {clip.key: IndexEntry((0, length - 1), inner) for clip in clips}
    rule = (
        f"{len(clips)} windows of {length} consecutive photographs, with targets at positions "
        f"{', '.join(map(str, inner))} of 0 to {length - 1}."
    )
    return CardSet(name, title, rule, _opener(windows, work, settings))


def _frame(photograph: ScenePhotograph) -> Frame:
    """A photograph as a dataset holds it."""
    source, camera = photograph.source, photograph.camera
    jpeg = source if isinstance(source, bytes) else source.read_bytes()
    if not jpeg.startswith(b"\xff\xd8"):
        raise UserError(f"{source} is no JPEG, which datasets hold")
    size = np.array((camera.width, camera.height) * 2)
    intrinsics = (np.asarray(camera.fxfycxcy) / size).astype(np.float32)
    return Frame(jpeg, intrinsics, camera.w2c[:3].astype(np.float32), 0)


def _opener(
    windows: Mapping[str, IndexEntry], work: pathlib.Path, settings: DataConfig
) -> Callable[[str, int], EvalSet]:
    """Opens the windows of a dataset, whose contexts are their first and last views."""
    file = work / "windows.json"
    index = {key: dataclasses.asdict(window) for key, window in windows.items()}
    write_text(file, json.dumps(index))

    def open_set(arrangement: str, inputs: int) -> EvalSet:
        evaluation = EvalConfig(SPLIT, str(file), batch_size=BATCH)
        views = open_eval_set(dataclasses.replace(settings, path=work), evaluation)
        return arrange_inputs(views, arrangement, inputs)

    return open_set
