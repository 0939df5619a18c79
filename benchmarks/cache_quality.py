"""PSNR on real photographs by number of input views and by dtype of the cache.

Of the photographs in the middle of a scene eight, evenly spaced, are targets; of the others as many
as asked are inputs, evenly spaced from the first to the last (one: the middle). All goes through
`lvsm_jax.Session`, as in an application: the inputs alone fix frame and scale.
"""

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

import lvsm_jax
from benchmarks.common import markdown_table
from input_pipeline.clip_scene import open_scene
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.models.efficient_lvsm import CACHE_DTYPES
from lvsm_jax.scenes.readers import Scene, ScenePhotograph

SPAN = 81  # photographs of a scene that are looked at
TARGETS = 8


def measure(
    export: str | os.PathLike, scenes: Sequence[str], counts: Sequence[int], *, size: int
) -> dict[str, Any]:
    """Mean PSNR of all targets.

    Args:
        export: of an EfficientLVSM.
        scenes: see `open_scene`.
        counts: numbers of input views.
        size: height and width in pixels.

    Returns:
        `rows` with `views`, `dtype`, `psnr` and, where the cache is not float32, `difference`: PSNR
        of these renders against those of the float32 cache, None if they are equal. Counts for
        which a scene has too few photographs are in `left_out`.

    Raises:
        ValueError: a scene that cannot be read.
    """
    chosen = [middle(open_scene(scene)) for scene in scenes]
    fewest = min(len(inputs) for inputs, _ in chosen)
    possible = [count for count in counts if count <= fewest]
    if not possible:
        raise ValueError(f"a scene has {fewest} photographs to choose {min(counts)} inputs from")
    rows, exact = [], {}
    progress = tqdm(total=len(possible) * len(CACHE_DTYPES), desc="quality", file=sys.stderr)
    for dtype in CACHE_DTYPES:
        model = lvsm_jax.load(export, cache_dtype=dtype)
        for count in possible:
            options = {"image_height": size, "max_views": max(possible), "targets_at_once": TARGETS}
            scores, differences = [], []
            for scene, (inputs, targets) in enumerate(chosen):
                renders = _renders(model, inputs, targets, count, options)
                truth = [_picture(target, size) for target in targets]
                scores.append(np.asarray(psnr(np.stack(truth), renders)))
                key = scene, count
                reference = exact.setdefault(key, renders)
                differences.append(np.square(renders - reference).mean())
            row = {"views": count, "dtype": dtype, "psnr": float(np.mean(scores))}
            if dtype != CACHE_DTYPES[0]:
                mean = float(np.mean(differences))
                row["difference"] = -10 * math.log10(mean) if mean else None
            rows.append(row)
            progress.update()
    progress.close()
    left_out = [count for count in counts if count > fewest]
    return {"scenes": list(scenes), "targets": TARGETS, "rows": rows, "left_out": left_out}


def middle(scene: Scene) -> tuple[list[ScenePhotograph], list[ScenePhotograph]]:
    """Photographs to choose inputs from, and targets, which are none of them."""
    there = scene.photographs
    first = max(0, (len(there) - SPAN) // 2)
    span = there[first : first + SPAN]
    if len(span) < TARGETS + 2:
        raise ValueError(f"{scene.source} has {len(span)} photographs, needed are {TARGETS + 2}")
    places = np.linspace(0, len(span) - 1, TARGETS + 2).round().astype(int)[1:-1]
    inputs = [photograph for i, photograph in enumerate(span) if i not in places]
    return inputs, [span[i] for i in places]


def _renders(
    model: lvsm_jax.EfficientLVSM,
    inputs: Sequence[ScenePhotograph],
    targets: Sequence[ScenePhotograph],
    count: int,
    options: dict[str, Any],
) -> np.ndarray:
    """`[t, h, w, 3]`, float in [0, 1], rounded to 8 bits as pictures are."""
    places = np.linspace(0, len(inputs) - 1, count) if count > 1 else [len(inputs) // 2]
    with lvsm_jax.Session(model, **options) as session:
        session.add([inputs[round(i)].load() for i in places])
        path = session.render_path([target.camera for target in targets])
        return np.stack(list(path)).astype(np.float32) / 255


def _picture(photograph: ScenePhotograph, size: int) -> np.ndarray:
    """`[h, w, 3]`, float in [0, 1]: the part of a photograph that a render shows."""
    return photograph.load().cropped_to(size, size).astype(np.float32) / 255


def table(quality: dict[str, Any]) -> str:
    """PSNR by views, and what the smaller dtypes of the cache lose."""
    rows = {(row["views"], row["dtype"]): row for row in quality["rows"]}
    counts = sorted({views for views, _ in rows})
    exact, *smaller = CACHE_DTYPES
    header = ["views", f"PSNR, {exact} cache, dB"]
    for dtype in smaller:
        header += [f"{dtype}: lost, dB", f"{dtype} against {exact}, dB"]
    cells = []
    for count in counts:
        line = [str(count), f"{rows[count, exact]['psnr']:.3f}"]
        for dtype in smaller:
            row = rows[count, dtype]
            lost = rows[count, exact]["psnr"] - row["psnr"]
            difference = row["difference"]
            line += [f"{lost:.4f}", "equal" if difference is None else f"{difference:.1f}"]
        cells.append(line)
    scenes = len(quality["scenes"])
    notes = f"{scenes} scenes, {quality['targets']} targets each."
    if quality["left_out"]:
        notes += f" Too few photographs for {quality['left_out']} views."
    return f"{markdown_table(header, cells, left=0)}\n\n{notes}"


def draw(quality: dict[str, Any], axes: Axes) -> None:
    """PSNR over the number of views."""
    for dtype, style in zip(CACHE_DTYPES, ("o-", "s--", "^:"), strict=True):
        rows = [row for row in quality["rows"] if row["dtype"] == dtype]
        x, y = [row["views"] for row in rows], [row["psnr"] for row in rows]
        axes.plot(x, y, style, label=f"cache in {dtype}")
    counts = sorted({row["views"] for row in quality["rows"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="input views", ylabel="PSNR, dB")
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{len(quality['scenes'])} real scenes", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
