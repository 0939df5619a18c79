"""How good a model is on photographs of one's own: some are kept from it, and rendered."""

import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.common.table import format_table
from lvsm_jax.evaluation.scoring import (
    COPY_NEAREST,
    EXACT_PSNR,
    MEAN_COLOR,
    METRICS,
    MODEL,
    nearest_input,
)
from lvsm_jax.frozen.lpips import MissingWeightsError, load_lpips
from lvsm_jax.training.run_log import csv_text

if TYPE_CHECKING:
    from lvsm_jax.rendering.session import Session
    from lvsm_jax.scenes.photograph import Photograph

_SHOWN = {MODEL: "model", COPY_NEAREST: "copy nearest input", MEAN_COLOR: "mean colour"}
_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}
_GAP = 4  # white columns between pictures

Pictures = UInt8[np.ndarray, "n h w 3"]


def metrics() -> dict[str, Any]:
    """PSNR, SSIM and, where its weights are there, LPIPS."""
    try:
        return {**METRICS, "lpips": load_lpips()}
    except MissingWeightsError as error:
        print(f"note: without LPIPS: {error}", file=sys.stderr)
        return dict(METRICS)


def evaluate(
    session: "Session",
    inputs: Sequence["Photograph"],
    held_out: Sequence["Photograph"],
    size: tuple[int, int],
    metrics: Mapping[str, Any] = METRICS,
) -> tuple[dict[str, Pictures], list[dict[str, Any]]]:
    """Pictures of the photographs held out, by kind, and a record of scores of each.

    The session has the inputs; `size` is height and width. Beside the model's renders stand the
    `photograph`, the nearest input and the inputs' mean colour.
    """
    cameras = [photograph.camera for photograph in held_out]
    renders = session.render_path(cameras, height=size[0], width=size[1])
    given = np.stack([photograph.cropped_to(*size) for photograph in inputs])
    from_world = session.frame
    c2w, targets = (
        from_world.apply(np.stack([photograph.camera.c2w for photograph in some]))[None]
        for some in (inputs, held_out)
    )
    pictures = {
        "photograph": np.stack([photograph.cropped_to(*size) for photograph in held_out]),
        MODEL: np.stack(list(renders)),
        COPY_NEAREST: given[nearest_input(c2w, targets)[0]],
    }
    mean = np.broadcast_to(given.mean(axis=(0, 1, 2)) / 255, given[:1].shape).astype(np.float32)
    rows = []
    for i, photograph in enumerate(held_out):
        target, row = _unit(pictures["photograph"][i : i + 1]), {"photograph": photograph.name}
        for method in _SHOWN:
            shown = mean if method == MEAN_COLOR else _unit(pictures[method][i : i + 1])
            scores = {name: float(metric(target, shown)[0]) for name, metric in metrics.items()}
            prefix = "" if method == MODEL else f"{method}_"
            row |= {prefix + name: round(value, 6) for name, value in scores.items()}
        rows.append(row)
    return pictures, rows


def save(folder: pathlib.Path, pictures: Mapping[str, Pictures], rows: list[dict]) -> None:
    """Writes `held_out.csv`, and a PNG for each photograph: it, the render, the nearest input."""
    for i, row in enumerate(rows):
        _, height, _, _ = pictures["photograph"].shape
        gap = np.full((height, _GAP, 3), 255, np.uint8)
        photograph, render, nearest = (
            pictures[kind][i] for kind in ("photograph", MODEL, COPY_NEAREST)
        )
        beside = np.concatenate([photograph, gap, render, gap, nearest], axis=1)
        name = re.sub(r"[^\w.-]+", "_", row["photograph"])
        with atomic_write(folder / f"held_out_{i:02d}_{name[-60:]}.png") as local:
            Image.fromarray(beside).save(local, format="PNG")
    write_text(folder / "held_out.csv", csv_text(rows[0], rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Mean scores of the model and the baselines, as text."""
    metrics = [name for name in _DIGITS if name in rows[0]]
    lines = []
    for method, title in _SHOWN.items():
        prefix = "" if method == MODEL else f"{method}_"
        means = [np.mean([min(row[prefix + name], EXACT_PSNR) for row in rows]) for name in metrics]
        digits = [f"{mean:.{_DIGITS[name]}f}" for name, mean in zip(metrics, means, strict=True)]
        lines.append([title, *digits])
    arrows = {"psnr": "PSNR ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓"}
    return format_table([f"{len(rows)} held out", *(arrows[name] for name in metrics)], lines)


def _unit(pictures: Pictures) -> Float[np.ndarray, "n h w 3"]:
    return pictures.astype(np.float32) / 255
