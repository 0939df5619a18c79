"""What the benchmarks of models share: random scenes, timing of a compiled call, tables, plots."""

import argparse
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from lvsm_jax import Cameras
from lvsm_jax.batch import Batch, Views
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.parallel.mesh import cpu_cores
from lvsm_jax.training.train_state import to_unit

# How the models are named and coloured (by Okabe and Ito, told apart by colour-blind eyes too).
NAMES = {
    "EfficientLVSM": "Efficient-LVSM",
    "LVSMDecoderOnly": "LVSM decoder-only",
    "LVSMEncoderDecoder": "LVSM encoder-decoder",
}
COLORS = {
    "EfficientLVSM": "#0072B2",
    "LVSMDecoderOnly": "#D55E00",
    "LVSMEncoderDecoder": "#009E73",
}


def exports_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Of a program that measures exports on the evaluation of a config, whose fields are flags."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Fields of the config are set by --config.SECTION.FIELD=VALUE.",
        allow_abbrev=False,
    )
    parser.add_argument("exports", nargs="+", metavar="EXPORT", help="directory of an export")
    parser.add_argument("--config", required=True, help="config file, see configs/")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    return parser


def hardware() -> str:
    """The machine in words: its accelerator, or its cores."""
    if jax.default_backend() == "cpu":
        return f"{cpu_cores()} CPU cores ({platform.machine()})"
    return jax.devices()[0].device_kind


def random_batch(scenes: int, *, views: int, targets: int, size: int) -> Batch:
    """Noise seen by cameras that look one way from random places.

    Args:
        scenes: in the batch.
        views: input views of each.
        targets: target views of each.
        size: height and width of the images in pixels.
    """
    rng = np.random.default_rng(0)

    def some(count: int) -> Views:
        c2w = np.tile(np.eye(4, dtype=np.float32), (scenes, count, 1, 1))
        c2w[..., :3, 3] = rng.uniform(-1, 1, (scenes, count, 3))
        cameras = Cameras(c2w, np.full((scenes, count, 4), size / 2, np.float32))
        images = rng.integers(0, 256, (scenes, count, size, size, 3), np.uint8)
        return Views(images, cameras, np.zeros((scenes, count), np.int32))

    rows = np.arange(scenes, dtype=np.int32)
    return Batch(some(views), some(targets), rows, rows >= 0, 0 * rows)


def render(model: ViewSynthesisModel, batch: Batch) -> jax.Array:
    """From 8-bit input images and all cameras to the targets' pixels."""
    images = to_unit(batch.inputs.images)
    return model(images, batch.inputs.cameras, batch.targets.cameras)


def measured(
    function: Callable[..., Any],
    args: tuple,
    flops: int,
    repeats: int,
    *,
    enough_seconds: float = math.inf,
) -> dict[str, Any]:
    """Time and memory of a compiled call, whose result takes the place of nothing: no donation.

    The first call is not counted, unless it alone takes `enough_seconds` (it does not compile).

    Args:
        function: to compile.
        args: pytrees of arrays.
        flops: of a call.
        repeats: counted calls, of which the median is taken.
        enough_seconds: about how long the counted calls may take; one is always made.
    """
    device = jax.devices()[0]
    args = jax.device_put(args, device)
    compiled = jax.jit(function).lower(*args).compile()
    before = device.memory_stats() or {}
    times = [_seconds(compiled, args)]
    if times[0] < enough_seconds:
        calls = max(1, int(min(repeats, enough_seconds / times[0])))
        times = [_seconds(compiled, args) for _ in range(calls)]
    seconds = statistics.median(times)
    memory = compiled.memory_analysis()
    sizes = {
        name: getattr(memory, f"{field}_size_in_bytes", None)
        for name, field in (("argument", "argument"), ("output", "output"), ("temporary", "temp"))
    }
    return {
        "seconds": seconds,
        "seconds_min_max": [min(times), max(times)],
        "calls": len(times),
        "flops": flops,
        "flops_by_xla": (compiled.cost_analysis() or {}).get("flops"),
        "flops_per_second": flops / seconds,
        **{f"{name}_bytes": size for name, size in sizes.items()},
        "allocated_bytes": _allocated(before, device.memory_stats() or {}),
    }


def matmul_peak(dtype: str, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """The best rate of square matmuls, with the `size` that reached it."""
    rates = []
    for size in sizes:
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        rates.append({"size": size, **measured(jnp.matmul, (a, a), 2 * size**3, repeats)})
    return max(rates, key=lambda rate: rate["flops_per_second"])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table that is also readable as it stands.

    Args:
        header: of the columns.
        rows: cells.
        left: how many of the first columns are text; the others are aligned as numbers.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def decibels(value: float | None) -> str:
    """A cell of a table."""
    return "–" if value is None else f"{value:.2f}"


def _seconds(compiled: Callable[..., Any], args: tuple) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    return time.perf_counter() - start


def _allocated(before: dict[str, int], after: dict[str, int]) -> int | None:
    """Bytes the device held at most besides what was there before.

    None where the device does not tell, or has already held more at once: it remembers the most
    of the whole process.
    """
    peak = after.get("peak_bytes_in_use", 0)
    if peak <= before.get("peak_bytes_in_use", 0):
        return None
    return peak - before["bytes_in_use"]


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the same order and moved no further than they must.

    Those that would overlap are placed evenly about their mean.
    """
    groups: list[list[int]] = []  # of neighbours, from the lowest
    centers: list[float] = []
    for index in sorted(range(len(positions)), key=lambda i: positions[i]):
        groups.append([index])
        centers.append(positions[index])
        while len(groups) > 1:
            apart = gap * (len(groups[-1]) + len(groups[-2])) / 2
            if centers[-1] - centers[-2] >= apart:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
            centers[-2:] = [statistics.mean(positions[i] for i in groups[-1])]
    moved = list(positions)
    for group, center in zip(groups, centers, strict=True):
        for place, index in enumerate(group):
            moved[index] = center + gap * (place - (len(group) - 1) / 2)
    return moved


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """Writes names at the right of the axes, level with where their lines end.

    Args:
        axes: with all lines drawn.
        ends: x, y, text and colour of each.
        height: of a text, as a part of the axes'.
    """
    axes.get_ylim()  # settles the limits, which `transData` does not
    to_axes = axes.transData + axes.transAxes.inverted()
    levels = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    for (_, _, text, color), level in zip(ends, spread(levels, height), strict=True):
        axes.text(1.02, level, text, color=color, transform=axes.transAxes, va="center")


def log_axes(axes: Axes, views: Sequence[int]) -> None:
    """Makes both scales logarithmic with plain numbers, a tick for each number of views."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(views, [str(count) for count in views])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
