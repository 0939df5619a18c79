"""One self-contained HTML page about a panel: its tables, and what some scenes look like."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lvsm_jax.evaluation import panel
from lvsm_jax.evaluation.report import CRISP_BELOW, METRICS, data_uri, render_uri, template
from lvsm_jax.evaluation.scoring import (
    BESIDE,
    COPY_NEAREST,
    MODEL,
    SEEN_BY,
    Evaluation,
    SceneImages,
)


def short_names(summary: Mapping[str, Any]) -> list[str]:
    """What tables call the methods of a panel, in their order."""
    beside = [summary["beside"]["label"]] if summary["beside"] else []
    return ["model", *beside, "copy"]


def render_page(
    summary: Mapping[str, Any],
    evaluations: Sequence[Evaluation | None],
    pictures: Sequence[Mapping[str, SceneImages] | None],
    shown: Sequence[int],
) -> str:
    """The page's HTML; evaluations and pictures are of the rows, with the scenes `shown`."""
    records = summary["rows"]
    first = next(iter(pictures[0].values()))
    return template("panel.html.j2").render(
        summary=summary,
        config=json.dumps(summary["config"], indent=2, default=str),
        names=short_names(summary),
        second=METRICS[panel.second_metric(records[0])],
        second_metric=panel.second_metric(records[0]),
        score_cells=panel.score_cells(records),
        seen_cells=panel.seen_cells(records),
        seen_by=SEEN_BY,
        left_out=[record for record in records if record["left_out"]],
        scenes=[_scene(records, evaluations, pictures, position) for position in shown],
        crisp=first.targets.shape[1] < CRISP_BELOW,
    )


def _scene(
    records: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation | None],
    pictures: Sequence[Mapping[str, SceneImages] | None],
    position: int,
) -> dict[str, Any]:
    """Pictures of one scene for the template: its inputs, and its middle target in each row."""
    key = evaluations[0].scenes[position]
    target = (int(evaluations[0].is_target[position].sum()) - 1) // 2

    def line(record: Mapping[str, Any], evaluation: Evaluation, images: SceneImages) -> dict:
        psnr = {
            method: float(scores["psnr"][position, target])
            for method, scores in evaluation.scores.items()
        }
        beside = images.beside
        return {
            "name": record["name"],
            "target": data_uri(images.targets[target]),
            "render": render_uri(images.renders[target]),
            "beside": None if beside is None else render_uri(beside[target]),
            "nearest": data_uri(images.nearest[target]),
            "psnr": [psnr[method] for method in (MODEL, BESIDE, COPY_NEAREST) if method in psnr],
        }

    rows = zip(records, evaluations, pictures, strict=True)
    return {
        "key": key,
        "inputs": [data_uri(image) for image in pictures[0][key].inputs],
        "lines": [line(record, found, of[key]) for record, found, of in rows if found],
    }
