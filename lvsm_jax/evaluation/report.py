"""One self-contained HTML page about an evaluation: numbers, distribution, pictures."""

import base64
import io
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lvsm_jax.evaluation import scoring
from lvsm_jax.evaluation.scoring import (
    BESIDE,
    COPY_NEAREST,
    MEAN_COLOR,
    MODEL,
    Evaluation,
    SceneImages,
)

METHODS = {MODEL: "model", COPY_NEAREST: "copy nearest input", MEAN_COLOR: "mean colour"}
METRICS = {"psnr": ("PSNR", "↑", 2), "ssim": ("SSIM", "↑", 3), "lpips": ("LPIPS", "↓", 3)}
METRICS[scoring.OBJECT] = ("PSNR of the object", "↑", 2)
_TARGETS_SHOWN = 3  # of a scene
_LARGEST_ERROR = 0.3  # where the colours of error maps end; fixed, so that pages compare
CRISP_BELOW = 160  # images of fewer rows are enlarged without smoothing, and stored as PNG


def choose_scenes(evaluation: Evaluation, count: int = 3) -> dict[str, list[int]]:
    """Positions of the scenes to show, by mean PSNR: the best, median and worst, none twice."""
    order = [int(s) for s in np.argsort(-evaluation.scene_means("psnr"), kind="stable")]
    count = min(count, max(1, len(order) // 3))
    best, worst = order[:count], order[count:][::-1][:count]
    between = [s for s in order if s not in best + worst]
    start = (len(between) - count + 1) // 2
    groups = {"best": best, "median": between[start:][:count], "worst": worst}
    return {name: scenes for name, scenes in groups.items() if scenes}


def methods_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The means of all methods: of the model, of one beside it where there is one, of baselines."""
    beside = {BESIDE: summary["beside"]} if summary["beside"] else {}
    return {MODEL: summary, **beside, **summary["baselines"]}


def render_page(
    evaluation: Evaluation,
    summary: Mapping[str, Any],
    pictures: Mapping[str, SceneImages],
    groups: Mapping[str, list[int]],
) -> str:
    """The page's HTML, with pictures by scene of the `groups` that `choose_scenes` chose.

    Where there is a model beside, `summary["beside"]` has its scores, its `label`, and in words
    which `weights` these are, as `summary["weights"]` says of the model.
    """
    metrics, copies = list(evaluation.scores[MODEL]), evaluation.scores.get(COPY_NEAREST)
    beside, first = summary["beside"], next(iter(pictures.values()))
    names = METHODS | ({BESIDE: beside["label"]} if beside else {})
    height, width = first.targets.shape[1:3]
    gradient = _colors(np.linspace(0, 1, 9))
    return template("report.html.j2").render(
        summary=summary,
        config=json.dumps(summary["config"], indent=2, default=str),
        metrics={metric: METRICS[metric][:2] for metric in metrics},
        tables=_tables(summary, names),
        seen=_seen(summary, names),
        exact_copies=int(np.isinf(copies["psnr"][evaluation.is_target]).sum()) if copies else 0,
        histogram=_histogram(evaluation, names),
        methods=names,
        groups={
            name: [_card(evaluation, s, pictures[evaluation.scenes[s]]) for s in scenes]
            for name, scenes in groups.items()
        },
        size=(height, width),
        num_inputs=first.inputs.shape[0],
        crisp=height < CRISP_BELOW,
        exact_psnr=scoring.EXACT_PSNR,
        largest_error=_LARGEST_ERROR,
        error_colors=", ".join(f"rgb({r} {g} {b})" for r, g, b in gradient),
    )


def template(name: str) -> jinja2.Template:
    """A template of a page, in which the filter `number` writes a value of a metric."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lvsm_jax.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template(name)


def _tables(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The means over all targets and, where some are input views, over the others."""
    num_context = summary["num_context_targets"]
    rows = [(names[method], scores) for method, scores in methods_of(summary).items()]
    tables = [{"caption": f"All {summary['num_images']:,} target views", "rows": rows}]
    if num_context:
        are = "is an input view" if num_context == 1 else "are input views"
        rows = [(name, scores["without_context_targets"]) for name, scores in rows]
        tables.append({"caption": f"Without the {num_context:,} that {are}", "rows": rows})
    return tables


def _seen(summary: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any] | None:
    """PSNR by how many inputs see a pixel, where that is known: a row for each method."""
    field = "psnr_by_inputs_that_see"
    if field not in summary:
        return None
    labels = {group: f"{group}, {of['share']:.0%}" for group, of in summary[field].items()}
    methods = methods_of(summary).items()
    return {"labels": labels, "rows": [(names[method], of[field]) for method, of in methods]}


def _card(evaluation: Evaluation, s: int, images: SceneImages) -> dict[str, Any]:
    """Data of one scene for the template."""
    count, scores = int(evaluation.is_target[s].sum()), evaluation.scores
    shown = np.unique(np.linspace(0, count - 1, min(count, _TARGETS_SHOWN)).round().astype(int))

    def psnr_of(method: str, t: int) -> float | None:
        return float(scores[method]["psnr"][s, t]) if method in scores else None

    def of_target(t: int) -> dict[str, Any]:
        render = np.clip(images.renders[t], 0, 1)
        error = np.abs(images.targets[t] / 255 - render).mean(axis=-1)  # over the colours
        return {
            "frame": int(evaluation.frames[s, t]),
            "is_context": bool(evaluation.is_context[s, t]),
            "scores": {
                metric: float(x[s, t])
                for metric, x in scores[MODEL].items()
                if evaluation.has(metric)[s, t]
            },
            "nearest_psnr": psnr_of(COPY_NEAREST, t),
            "beside_psnr": psnr_of(BESIDE, t),
            "target": data_uri(images.targets[t]),
            "render": render_uri(render),
            "beside": None if images.beside is None else render_uri(images.beside[t]),
            "error": data_uri(_colors(np.clip(error / _LARGEST_ERROR, 0, 1))),
            "nearest": data_uri(images.nearest[t]),
        }

    return {
        "key": evaluation.scenes[s],
        "means": {metric: float(evaluation.scene_means(metric)[s]) for metric in scores[MODEL]},
        "inputs": [data_uri(image) for image in images.inputs],
        "targets": [of_target(int(t)) for t in shown],
        "num_targets": count,
    }


def _colors(error: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Colours of an error map in [0, 1], black for 0."""
    return matplotlib.colormaps["inferno"](error, bytes=True)[..., :3]


def data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture for a page: PNG for small ones, else JPEG."""
    png = image.shape[0] < CRISP_BELOW
    options = {"format": "PNG"} if png else {"format": "JPEG", "quality": 95, "subsampling": 0}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    kind = options["format"].lower()
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render_uri(render: Float[np.ndarray, "h w 3"]) -> str:
    """The same of a render."""
    return data_uri((np.clip(render, 0, 1) * 255).round().astype(np.uint8))


def _number(value: float | None, metric: str) -> str:
    if value is None or np.isnan(value):
        return "–"
    return "∞" if np.isinf(value) else f"{value:.{METRICS[metric][2]}f}".replace("-", "−")


def _histogram(evaluation: Evaluation, names: Mapping[str, str]) -> dict[str, Any]:
    """Histogram of the scenes' PSNR, in units of the SVG's view box."""
    width, height = 720, 240
    methods = [method for method in (MODEL, BESIDE, COPY_NEAREST) if method in evaluation.scores]
    means = {method: evaluation.scene_means("psnr", method) for method in methods}
    edges = _edges(means)
    first, last = edges[0], edges[-1]
    counts = {
        method: np.histogram(x.clip(first, last), edges)[0].tolist() for method, x in means.items()
    }
    tallest = max(max(c) for c in counts.values())
    to_x, to_y = width / (last - first), height / tallest

    def bars(method: str) -> list[dict[str, Any]]:
        return [
            {
                "x": (low - first) * to_x,
                "y": height - count * to_y,
                "width": (high - low) * to_x,
                "height": count * to_y,
                "label": f"{low:g} to {high:g} dB: {count} scenes ({names[method]})",
            }
            for (low, high), count in zip(itertools.pairwise(edges), counts[method], strict=True)
            if count
        ]

    return {
        "width": width,
        "height": height,
        "tallest": tallest,
        "bars": {method: bars(method) for method in methods},
        "means": {
            method: ((x.mean().clip(first, last) - first) * to_x, x.mean())
            for method, x in means.items()
        },
        "ticks": [((x - first) * to_x, f"{x:g}") for x in edges[:: -(-len(edges) // 12)]],
    }


def _edges(means: Mapping[str, np.ndarray]) -> np.ndarray:
    """Limits of at most about 30 bins of a round width, in dB."""
    low = min(x.min() for x in means.values())
    # A few exact copies of the baseline must not squeeze all else into a corner.
    high = max(
        np.percentile(x, 95) if method == COPY_NEAREST else x.max() for method, x in means.items()
    )
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10) if (high - low) / step <= 30)
    return np.arange(np.floor(low / step), np.floor(high / step) + 1.5) * step
