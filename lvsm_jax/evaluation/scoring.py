"""Scores on held-out views: of a model, of another beside it, and of two baselines.

Letters: `s` scenes of the set, `b` of a batch, `v` input views, `t` targets, `k` methods, `g`
groups of pixels by how many inputs see them.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from tqdm import tqdm

from lvsm_jax.batch import Batch, Views
from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation.metrics import psnr, ssim
from lvsm_jax.evaluation.pixel_scores import (
    errors_by_seen,
    psnr_of_object,
    score,
    unit_range,
)
from lvsm_jax.models.base import readable_cameras
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel import processes

# The baselines are what any model must beat.
MODEL, BESIDE, COPY_NEAREST, MEAN_COLOR = "model", "beside", "copy_nearest", "mean_color"

# In means, an image that equals its target counts with the PSNR of rounding to 8 bits instead of
# infinity. Only a baseline gets there: by copying an input view that is also a target.
EXACT_PSNR = 10 * math.log10(12 * 255**2)

# Pixels by how many inputs see their point, where the data knows it; pixels without one, of a sky,
# are in none of them.
SEEN_BY = ("none", "one", "several")

Metrics = Mapping[str, Callable[..., Array]]
METRICS: Metrics = {"psnr": psnr, "ssim": ssim}

# The PSNR over the pixels of the object alone, where the batches say which these are.
OBJECT = "psnr_object"


@runtime_checkable
class EvalSet(Protocol):
    """Held-out scenes in batches: clips of a dataset (`input_pipeline.loading`), or worlds."""

    scenes: Any  # `scenes.key[row]` names the scene of a row that `Batch.scene` gives
    rows: Int[np.ndarray, "s"]  # of all processes, in the order of the evaluation
    num_scenes: int

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this process, the same at each call."""


class Seen(NamedTuple):
    """Errors by `SEEN_BY`, pooled over the pixels of an image."""

    pixels: Int[np.ndarray, "s t g"]  # how many there are
    errors: dict[str, Float[np.ndarray, "s t g"]]  # by method, their summed squared error

    def summary(self, method: str, counted: Bool[np.ndarray, "s t"]) -> dict[str, dict[str, Any]]:
        """For each group its PSNR over its pixels of what is counted, and their share of all.

        The PSNR is None where there is no such pixel.
        """
        options = {"axis": (0, 1), "dtype": np.float64, "where": counted[..., None]}
        pixels, errors = (x.sum(**options) for x in (self.pixels, self.errors[method]))
        return {
            name: {
                "psnr": None if not count else _psnr_of(error / count),
                "share": float(count / max(pixels.sum(), 1)),
            }
            for name, count, error in zip(SEEN_BY, pixels, errors, strict=True)
        }


def _psnr_of(error: float) -> float:
    return float(-10 * math.log10(error)) if error > 0 else EXACT_PSNR


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of every target view of every scene; places that only fill up count nowhere."""

    scenes: tuple[str, ...]  # keys
    frames: Int[np.ndarray, "s t"]  # positions of the targets in the clip, -1 where there is none
    is_context: Bool[np.ndarray, "s t"]  # whether the target is also an input view
    scores: dict[str, dict[str, Float[np.ndarray, "s t"]]]  # by method, then by metric
    seen: Seen | None = None  # where the batches say how many inputs see a pixel
    # Where the batches say which pixels are of the object: whether any is.
    with_object: Bool[np.ndarray, "s t"] | None = None

    @property
    def is_target(self) -> Bool[np.ndarray, "s t"]:
        """Whether there is a target: scenes may have fewer than others, first in their row."""
        return self.frames >= 0

    def scene_means(self, metric: str, method: str = MODEL) -> Float[np.ndarray, "s"]:
        """Mean over the targets of each scene; NaN where none has such a score."""
        scores, counted = self._counted(metric, method), self.has(metric)
        sums = np.where(counted, scores, 0).sum(axis=1)
        return np.where(counted.any(axis=1), sums, np.nan) / np.maximum(counted.sum(axis=1), 1)

    def has(self, metric: str) -> Bool[np.ndarray, "s t"]:
        """Targets that have a score; of the object's none where no pixel is of it."""
        if metric != OBJECT or self.with_object is None:
            return self.is_target
        return self.is_target & self.with_object

    def _counted(self, metric: str, method: str) -> Float[np.ndarray, "s t"]:
        scores = self.scores[method][metric].astype(np.float64)
        is_psnr = metric in ("psnr", OBJECT)
        return np.where(np.isinf(scores), EXACT_PSNR, scores) if is_psnr else scores

    def mean(self, metric: str, method: str = MODEL, *, context: bool = True) -> float | None:
        """Mean over the targets of a scene, then over scenes.

        Without `context`, targets that are also input views do not count, nor do scenes where none
        is left; None if no scene is left.
        """
        counted = self.has(metric) if context else self.has(metric) & ~self.is_context
        some = counted.any(axis=1)
        if not some.any():
            return None
        scores = self._counted(metric, method)[some]
        return float(scores.mean(axis=1, where=counted[some]).mean())

    def summary(self) -> dict[str, Any]:
        """All means and counts, as plain Python values; `beside` is None without such a model."""

        def means(method: str, *, context: bool = True) -> dict[str, Any]:
            return {x: self.mean(x, method, context=context) for x in self.scores[method]}

        by_method = {
            method: means(method) | {"without_context_targets": means(method, context=False)}
            for method in self.scores
        }
        if self.seen:
            for method, found in by_method.items():
                found["psnr_by_inputs_that_see"] = self.seen.summary(method, self.is_target)
        return {
            **by_method.pop(MODEL),
            "beside": by_method.pop(BESIDE, None),
            "baselines": by_method,
            "num_scenes": len(self.scenes),
            "num_images": int(self.is_target.sum()),
            "num_context_targets": int(self.is_context.sum()),
        }

    def check_finite(self) -> None:
        """Raises UserError, naming the first target, if a render holds NaN."""
        for method, whose in ((MODEL, ""), (BESIDE, " of the model beside")):
            if method not in self.scores:
                continue
            bad = np.argwhere(np.isnan(self.scores[method]["psnr"]) & self.is_target)
            if len(bad):
                scene, target = bad[0]
                raise UserError(
                    f"{len(bad)} of {self.is_target.sum()} renders{whose} are not finite; the "
                    f"first is frame {self.frames[scene, target]} of scene {self.scenes[scene]} "
                    "(those of a GSLRM also where model.pairs_per_gaussian is too small)"
                )

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat record an image, as for a table; others than the model's carry their method."""
        for s, t in np.argwhere(self.is_target):
            frame, is_context = int(self.frames[s, t]), bool(self.is_context[s, t])
            row = {"scene": self.scenes[s], "target_frame": frame, "is_context": is_context}
            for method, metrics in self.scores.items():
                prefix = "" if method == MODEL else f"{method}_"
                for name, x in metrics.items():
                    there = self.has(name)[s, t]
                    row[prefix + name] = round(float(x[s, t]), 6) if there else None
            yield row


@dataclasses.dataclass(frozen=True)
class SceneImages:
    """Pictures of one scene; those of the data in 8 bits. Targets that only fill up come last."""

    inputs: UInt8[np.ndarray, "v h w 3"]
    targets: UInt8[np.ndarray, "t h w 3"]
    nearest: UInt8[np.ndarray, "t h w 3"]
    renders: Float[np.ndarray, "t h w 3"]
    beside: Float[np.ndarray, "t h w 3"] | None = None  # renders of the model beside


def evaluate(
    model: Callable[..., Array],
    eval_set: EvalSet,
    *,
    beside: Callable[..., Array] | None = None,
    metrics: Metrics = METRICS,
    baselines: bool = True,
    put: Callable[[Any], Any] = jax.device_put,
    progress: bool | Callable[[int], Any] = True,
) -> Evaluation:
    """Renders and scores every target of every scene; padding of the last batch does not count.

    Each of several processes gives the scenes of its own batches, and gets all scores. The model is
    one that `lvsm_jax.load` returns, as is a second one, `beside`, that is to see and be asked the
    same; `metric(target, prediction)` gives one number for each of a batch of float32 images; `put`
    puts a batch of this process, or other arrays of its scenes, on the devices; progress is shown
    on stderr, or told as the number of scenes that are done. UserError for an empty set.
    """
    models = _models(model, beside)
    metrics = {k: _as_pytree(metric) for k, metric in metrics.items()}
    plain = [COPY_NEAREST, MEAN_COLOR] if baselines else []
    methods = [*models, *plain]

    def dispatch(batch: Batch) -> dict[str, Any]:
        placed = put(batch)
        shown = placed.inputs, placed.targets.cameras
        predictions = [render_views(model, *shown) for model in models.values()]
        if plain:
            images = baseline_images(batch.inputs, batch.targets)
            predictions += put([images[method] for method in plain])
        return {
            "valid": placed.valid,
            "scene": placed.scene,
            "frames": placed.targets.frame,
            "input_frames": placed.inputs.frame,
            "scores": score(metrics, placed.targets.images, predictions),
            "object": psnr_of_object(placed.mask, placed.targets.images, predictions),
            "seen": errors_by_seen(placed.seen, placed.targets.images, predictions),
        }

    parts, total = [], eval_set.num_scenes
    hidden = progress is not True
    with tqdm(total=total, desc="evaluating", unit="scene", disable=hidden) as bar:
        told = progress if callable(progress) else bar.update
        # A batch is fetched after the next one is dispatched: the device computes meanwhile.
        dispatched = itertools.chain(map(dispatch, eval_set), [None])
        for rows, _ in itertools.pairwise(dispatched):
            rows = processes.gather(rows)
            valid = rows.pop("valid")
            parts.append(jax.tree.map(operator.itemgetter(valid), rows))
            told(int(valid.sum()))
    if not parts:
        raise UserError("nothing to evaluate: the set has no batches")
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    # Several processes deal the scenes of a batch among them.
    position = {row: i for i, row in enumerate(np.asarray(eval_set.rows).tolist())}
    order = np.argsort([position[row] for row in joined["scene"].tolist()], kind="stable")
    joined = jax.tree.map(operator.itemgetter(order), joined)
    # In the order in which they were asked for; trees sort their names.
    scored = {metric: joined["scores"][metric] for metric in metrics}
    of_object = joined["object"]
    if of_object:
        scored[OBJECT] = of_object["psnr"]
    seen = joined["seen"] and Seen(
        joined["seen"]["pixels"],
        {method: joined["seen"]["errors"][:, k] for k, method in enumerate(methods)},
    )
    is_context = joined["frames"][:, :, None] == joined["input_frames"][:, None, :]
    return Evaluation(
        scenes=tuple(str(eval_set.scenes.key[row]) for row in joined["scene"]),
        frames=joined["frames"],
        is_context=is_context.any(axis=-1),
        scores={
            method: {metric: scores[:, k] for metric, scores in scored.items()}
            for k, method in enumerate(methods)
        },
        seen=seen,
        with_object=of_object and of_object["there"],
    )


def render_scenes(
    model: Callable[..., Array],
    eval_set: EvalSet,
    *,
    beside: Callable[..., Array] | None = None,
    put: Callable[[Any], Any] = jax.device_put,
) -> dict[str, SceneImages]:
    """Pictures of all scenes, by key, of a set small enough to hold them; see `evaluate`."""
    models, found = _models(model, beside), {}
    for batch in eval_set:
        placed = put(batch)
        nearest = put(baseline_images(batch.inputs, batch.targets)[COPY_NEAREST])
        shown = placed.inputs, placed.targets.cameras
        renders = [render_views(model, *shown) for model in models.values()]
        pictures = placed.inputs.images, placed.targets.images, nearest, *renders
        valid, scene, pictures = processes.gather((placed.valid, placed.scene, pictures))
        for i in np.flatnonzero(valid):
            found[str(eval_set.scenes.key[scene[i]])] = SceneImages(*(x[i] for x in pictures))
    return found


def baseline_images(inputs: Any, targets: Any) -> dict[str, np.ndarray]:
    """What the baselines show, on the host: the `nearest_input`, or the inputs' mean colour."""
    images = np.asarray(inputs.images)
    index = nearest_input(np.asarray(inputs.cameras.c2w), np.asarray(targets.cameras.c2w))
    mean = images.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64) / 255
    return {
        COPY_NEAREST: np.take_along_axis(images, index[..., None, None, None], axis=1),
        MEAN_COLOR: mean.astype(np.float32),
    }


def nearest_input(
    inputs: Float[np.ndarray, "b v 4 4"], targets: Float[np.ndarray, "b t 4 4"]
) -> Int[np.ndarray, "b t"]:
    """The input nearest to each target; of those equally near, the one turned least against it."""
    inputs, targets = inputs[:, None].astype(np.float64), targets[:, :, None].astype(np.float64)
    distance = np.linalg.norm(inputs[..., :3, 3] - targets[..., :3, 3], axis=-1)  # [b, t, v]
    alignment = (inputs[..., :3, :3] * targets[..., :3, :3]).sum(axis=(-2, -1))  # 1 + 2 cos(angle)
    tolerance = 1e-5 * distance.max(axis=-1, keepdims=True)  # equally near
    near = distance <= distance.min(axis=-1, keepdims=True) + tolerance
    return np.where(near, alignment, -np.inf).argmax(axis=-1)


@jax.jit
def render_views(model: Any, inputs: Views, cameras: Cameras) -> Float[Array, "b t h w 3"]:
    """What the model shows at these cameras, in float32."""
    shown, asked = (readable_cameras(model, some) for some in (inputs.cameras, cameras))
    return model(unit_range(inputs.images), shown, asked).astype(jnp.float32)


def _models(
    model: Callable[..., Array], beside: Callable[..., Array] | None
) -> dict[str, Callable[..., Array]]:
    """The models by method, as arguments of `render_views`."""
    others = {} if beside is None else {BESIDE: _as_pytree(beside)}
    return {MODEL: _as_pytree(model), **others}


def _as_pytree(function: Callable[..., Array]) -> Any:
    """An argument for `jax.jit`: weights are no constants, and a plain function is no leaf."""
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(function))
    return jax.tree_util.Partial(function) if is_leaf else function
