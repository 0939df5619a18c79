"""One checkpoint under changes that an evaluation on clips like those of training hides.

Each row of a panel changes one thing, and shows the same scenes and asks for the same targets as
the first row, which changes nothing. So differences are of the change alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from lvsm_jax.batch import Batch
from lvsm_jax.evaluation.scoring import (
    BESIDE,
    MODEL,
    SEEN_BY,
    EvalSet,
    Evaluation,
    Metrics,
    evaluate,
)
from lvsm_jax.models.cameras import Cameras

SCALES = (0.5, 2.0)
TURN, ROLL = 90.0, 15.0  # degrees, about the axes that point down and ahead
INPUTS = (1, 2, 4, 8, 16)

_SEEN = "psnr_by_inputs_that_see"


@dataclasses.dataclass(frozen=True)
class Changed:
    """Evaluation sets in step, of whose batches one is made: an `EvalSet` itself."""

    sets: tuple[Any, ...]  # of the same scenes
    change: Callable[..., Batch]  # of a batch of each

    @property
    def scenes(self) -> Any:
        """The scene table."""
        return self.sets[0].scenes

    @property
    def rows(self) -> Any:
        """Rows of the scenes in it."""
        return self.sets[0].rows

    @property
    def num_scenes(self) -> int:
        """Number of scenes, over all processes."""
        return self.sets[0].num_scenes

    def some(self, positions: Sequence[int]) -> "Changed":
        """The scenes at these positions."""
        return dataclasses.replace(self, sets=tuple(each.some(positions) for each in self.sets))

    def __iter__(self) -> Iterator[Batch]:
        for batches in zip(*self.sets, strict=True):
            yield self.change(*batches)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a panel.

    Attributes:
        group: what is changed: `none`, `frame`, `lens` or `inputs`.
        name: the change in words.
        views: the scenes as they are shown, or a sentence on why they cannot be.
    """

    group: str
    name: str
    views: Any


def frame_rows(views: EvalSet) -> list[Row]:
    """The world rescaled, turned and rolled: what a model with another unit or frame would see.

    Cameras change after their normalisation, which would undo any change of the world before it.
    """

    def row(name: str, turn: Float[np.ndarray, "3 3"], scale: float) -> Row:
        return Row("frame", name, Changed((views,), lambda batch: reframe(batch, turn, scale)))

    scaled = [row(f"world × {scale:g}", np.eye(3), scale) for scale in SCALES]
    return [
        *scaled,
        row(f"world turned {TURN:g}°", _rotation(1, TURN), 1.0),
        row(f"world rolled {ROLL:g}°", _rotation(2, ROLL), 1.0),
    ]


def reframe(batch: Batch, turn: Float[np.ndarray, "3 3"], scale: float) -> Batch:
    """A batch on the host whose cameras are turned about the frame's origin, and then scaled."""

    def moved(cameras: Cameras) -> Cameras:
        c2w = np.array(cameras.c2w, np.float64)
        c2w[..., :3, :] = turn @ c2w[..., :3, :]
        c2w[..., :3, 3] *= scale
        return dataclasses.replace(cameras, c2w=c2w.astype(np.float32))

    inputs, targets = (
        dataclasses.replace(views, cameras=moved(views.cameras))
        for views in (batch.inputs, batch.targets)
    )
    return dataclasses.replace(batch, inputs=inputs, targets=targets)


def _rotation(axis: int, degrees: float) -> Float[np.ndarray, "3 3"]:
    """About an axis of the scene frame, by its number."""
    turn, (i, j) = np.eye(3), ((axis + 1) % 3, (axis + 2) % 3)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


def evaluate_panel(
    model: Callable[..., Any],
    rows: Sequence[Row],
    *,
    metrics: Metrics,
    beside: Callable[..., Any] | None = None,
    put: Callable[[Any], Any],
    progress: bool = True,
) -> list[Evaluation | None]:
    """`scoring.evaluate` of each row, None where there is nothing to show; rows may share a set.

    UserError where a render is not finite.
    """
    sets = {id(row.views): row.views for row in rows if not isinstance(row.views, str)}
    total, found = sum(views.num_scenes for views in sets.values()), {}
    with tqdm(total=total, desc="panel", unit="scene", disable=not progress) as bar:
        for which, views in sets.items():
            how = {"metrics": metrics, "beside": beside, "put": put, "progress": bar.update}
            found[which] = evaluate(model, views, **how)
            found[which].check_finite()
    return [found.get(id(row.views)) for row in rows]


def summarize(rows: Sequence[Row], evaluations: Sequence[Evaluation | None]) -> list[dict]:
    """A record of each row: its means as `Evaluation.summary` has them, or why there are none."""
    return [
        {
            "change": row.group,
            "name": row.name,
            "left_out": None if found else row.views,
            **(found.summary() if found else {}),
        }
        for row, found in zip(rows, evaluations, strict=True)
    ]


def methods_of(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The means of a record by method: the model, one beside it, the copy of the nearest input."""
    beside = {BESIDE: record["beside"]} if record["beside"] else {}
    copy = {name: means for name, means in record["baselines"].items() if name == "copy_nearest"}
    return {MODEL: record, **beside, **copy}


def score_cells(records: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """For each record its name, then of each method PSNR, its difference to the first, and LPIPS.

    Without LPIPS it is SSIM; None where there is no number.
    """
    first, second = methods_of(records[0]), second_metric(records[0])
    cells = []
    for record in records:
        numbers: list[float | None] = [None] * (3 * len(first))
        if not record["left_out"]:
            numbers = [
                number
                for method, means in methods_of(record).items()
                for number in (
                    means["psnr"],
                    means["psnr"] - first[method]["psnr"],
                    means[second],
                )
            ]
        cells.append([record["name"], *numbers])
    return cells


def second_metric(record: Mapping[str, Any]) -> str:
    """The metric beside PSNR."""
    return "lpips" if record.get("lpips") is not None else "ssim"


def seen_cells(records: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The same of the PSNR by how many inputs see a pixel; none where that is not known.

    After the name, of each group: its share of pixels, and the PSNR of each method.
    """
    if _SEEN not in records[0]:
        return []
    methods, cells = methods_of(records[0]), []
    for record in records:
        numbers: list[float | None] = [None] * (len(SEEN_BY) * (1 + len(methods)))
        if not record["left_out"]:
            numbers = []
            for group in SEEN_BY:
                by_method = [means[_SEEN][group] for means in methods_of(record).values()]
                numbers += [by_method[0]["share"], *(of["psnr"] for of in by_method)]
        cells.append([record["name"], *numbers])
    return cells
