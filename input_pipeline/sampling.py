"""Which frames of a clip make a sample. Pure functions of numbers and a generator.

Positions count the frames of a clip from 0. Training samples are drawn as Efficient-LVSM draws
them (arXiv 2602.06478); evaluation takes its positions from an index file in pixelSplat's format.
"""

import dataclasses
import os

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64
from numpy.random import Generator

from input_pipeline.preprocess import Crop
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json
from lvsm_jax.scenes.placing import place_inputs
from lvsm_jax.scenes.scene_frame import SceneFrame


@dataclasses.dataclass(frozen=True)
class ViewSample:
    """Positions in a clip of the frames of one sample.

    The cameras of all its views define the scene frame of the published protocol. In evaluation a
    target that is also an input counts twice, as it does there.
    """

    inputs: Int64[np.ndarray, " v"]  # views the model sees
    targets: Int64[np.ndarray, " t"]  # views it is asked to render; they may be among the inputs
    all_views: Int64[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """Positions an evaluation index names for one clip."""

    context: tuple[int, ...]
    target: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Reframing:
    """A rotation of all cameras about the origin of their scene frame, and a factor on positions.

    Camera-to-camera transforms change in scale alone.
    """

    turn: Float64[np.ndarray, "3 3"]
    scale: float

    def apply(self, frame: SceneFrame) -> SceneFrame:
        """The turned and scaled frame."""
        turn = np.eye(4)
        turn[:3, :3] = self.turn
        return SceneFrame(turn @ frame.world_to_scene, self.scale * frame.scale)


@dataclasses.dataclass(frozen=True)
class StepChoices:
    """What the samples of a training step have in common; no aspect ratio is the plain shape."""

    num_inputs: int
    aspect_ratio: float | None = None


def step_choices(config: DataConfig, seed: int, step: int) -> StepChoices:
    """Draws by seed and step alone, so that all processes and resumed runs draw alike."""
    rng = np.random.default_rng([seed, step])
    counts, ratios = config.possible_inputs, config.aspect_ratios
    num_inputs = counts[rng.integers(len(counts))]
    return StepChoices(num_inputs, ratios[rng.integers(len(ratios))] if ratios else None)


def usable_clips(num_frames: Int[np.ndarray, " s"], config: DataConfig) -> Bool[np.ndarray, " s"]:
    """Whether training samples can be drawn from clips with these numbers of frames."""
    return num_frames > max(config.min_span, config.num_views)


def sample_views(
    num_frames: int, config: DataConfig, num_inputs: int, rng: Generator
) -> ViewSample:
    """Draws a training sample with `num_inputs` inputs from a clip of `num_frames` frames.

    The span between the first and last view is uniform in
    `[max(min_span, num_views), min(num_frames - 1, max_span)]`, then the first position is
    uniform. The views are first, last, and the others without replacement strictly between; the
    inputs are the first `num_inputs` of them, the targets are drawn without replacement from all.
    """
    shortest = max(config.min_span, config.num_views)
    longest = min(num_frames - 1, config.max_span)
    if shortest > longest:
        raise UserError(
            f"a clip of {num_frames} frames has no span of at least {shortest} and at most "
            f"{config.max_span} frames for {config.num_views} views"
        )
    span = rng.integers(shortest, longest, endpoint=True)
    first = rng.integers(num_frames - span)
    others = rng.choice(np.arange(1, span), config.num_views - 2, replace=False)
    views = first + np.concatenate([[0, span], others])
    targets = rng.choice(config.num_views, config.num_targets, replace=False)
    return ViewSample(views[:num_inputs], views[targets], views)


def sample_random(
    num_views: int, config: DataConfig, num_inputs: int, rng: Generator
) -> ViewSample:
    """Draws any `config.num_views` of a clip's views: inputs, then targets, which are none of them.

    The others lend their cameras to the scene frame, where one is fitted to all views.
    """
    views = rng.choice(num_views, config.num_views, replace=False)
    return ViewSample(views[:num_inputs], views[num_inputs:][: config.num_targets], views)


def sample_crop(
    image_shape: tuple[int, int], config: DataConfig, aspect_ratio: float | None, rng: Generator
) -> Crop | None:
    """Draws which part of its photographs a training sample shows; one for all of them.

    `image_shape` is height and width of the images of a step without an aspect ratio. None is the
    published preprocessing.
    """
    if aspect_ratio is not None:
        image_shape = config.image_shape(aspect_ratio)
    if config.random_windows:
        share = rng.uniform(config.smallest_crop, 1)
        return Crop(*image_shape, share=share, place=(rng.random(), rng.random()))
    return None if aspect_ratio is None else Crop(*image_shape)


def sample_reframing(config: DataConfig, rng: Generator) -> Reframing | None:
    """Draws how a training sample's scene frame is turned and scaled; None for not at all.

    The same numbers are drawn whether one of the two or both are asked for.
    """
    if config.scale_jitter == 1 and not config.frame_turn:
        return None
    scale = config.scale_jitter ** rng.uniform(-1, 1)
    angle = np.deg2rad(rng.uniform(0, config.frame_turn))
    axis = rng.normal(size=3)  # of uniform direction
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    return Reframing(turn, scale)


def evaluation_views(entry: IndexEntry, num_inputs: int) -> ViewSample:
    """The views of an index entry; UserError if it does not say which `num_inputs` to take.

    One input is the first context view. More inputs than two are spread evenly from the first to
    the last of two context views, ends exact.
    """
    context, targets = np.array(entry.context, np.int64), np.array(entry.target, np.int64)
    if num_inputs == 1:
        inputs = context[:1]
    elif num_inputs == len(context):
        inputs = context
    elif len(context) == 2:
        inputs = np.linspace(context[0], context[1], num_inputs).round().astype(np.int64)
        if len(np.unique(inputs)) < num_inputs:
            raise UserError(
                f"num_inputs is {num_inputs}, but from context {context[0]} to {context[1]} there "
                f"are only {abs(context[1] - context[0]) + 1} frames"
            )
    else:
        raise UserError(
            f"num_inputs is {num_inputs} and the index names {len(context)} context views: "
            "expected 1, that many, or an index of 2 to spread the inputs between"
        )
    return ViewSample(inputs, targets, np.concatenate([inputs, targets]))


def arranged_views(entry: IndexEntry, num_inputs: int, arrangement: str) -> ViewSample:
    """The targets of an index entry, with inputs that `place_inputs` takes from its window.

    The window lasts from the first of the context views to the last; its targets are no inputs.
    UserError where it has fewer views.
    """
    first, last = min(entry.context), max(entry.context)
    free = [view for view in range(first, last + 1) if view not in entry.target]
    inputs = np.array(place_inputs(free, num_inputs, arrangement), np.int64)
    targets = np.array(entry.target, np.int64)
    return ViewSample(inputs, targets, np.concatenate([inputs, targets]))


def read_index(path: str | os.PathLike) -> dict[str, IndexEntry | None]:
    """Reads an evaluation index: `{scene key: {"context": [...], "target": [...]} or null}`.

    UserError, which names the scene, for a file that is no such index.
    """
    table = read_json(path)
    return {key: _index_entry(entry, f"{path}, scene {key}") for key, entry in table.items()}


def _index_entry(entry: object, where: str) -> IndexEntry | None:
    if entry is None:
        return None
    for field in ("context", "target"):
        values = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(values, list) or not values or {*map(type, values)} != {int}:
            what = f"{field} is {values!r:.100}, expected a list of frame positions"
            raise UserError(f"evaluation index {where}: {what}")
    return IndexEntry(tuple(entry["context"]), tuple(entry["target"]))
