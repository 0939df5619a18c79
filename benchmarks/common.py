"""What benchmarks share: their command line, random scenes, timing of a compiled call, plots."""

import argparse
import functools
import json
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lvsm_jax import Cameras
from lvsm_jax.batch import Batch, Views
from lvsm_jax.common.command_line import argument_parser, path
from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.common.table import format_table
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.parallel.mesh import cpu_cores
from lvsm_jax.training.train_state import to_unit

# Of the models; colours by Okabe and Ito, which colour-blind eyes tell apart too.
NAMES = {
    "EfficientLVSM": "Efficient-LVSM",
    "LVSMDecoderOnly": "LVSM decoder-only",
    "LVSMEncoderDecoder": "LVSM encoder-decoder",
    "GSLRM": "GS-LRM",
}
COLORS = {
    "EfficientLVSM": "#0072B2",
    "LVSMDecoderOnly": "#D55E00",
    "LVSMEncoderDecoder": "#009E73",
    "GSLRM": "#CC79A7",
}
_FILES = ("output", "plot", "read")
# By which seconds are counted: those that pass, or those that this process computed on any core.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

Report = dict[str, Any]
markdown_table = functools.partial(format_table, markdown=True)


def module_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`; its help is the module's docstring."""
    parser = argument_parser("", doc)
    parser.prog = f"python -m {module}"
    return parser


def benchmark_parser(module: str, doc: str, *, plot: bool = False) -> argparse.ArgumentParser:
    """A parser with the options that benchmarks share."""
    parser = module_parser(module, doc)
    add = functools.partial(parser.add_argument, type=path, metavar="FILE")
    add("--output", help="JSON file to write")
    if plot:
        add("--read", help="JSON of an earlier run to show")
        add("--plot", help="PNG file to write")
    return parser


def report_benchmark(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Report],
    tables: Callable[[Report], str],
    draw: Callable[[Report], Figure] | None = None,
) -> None:
    """Measures, or reads what was measured; prints tables, and writes the files asked for."""
    if draw and options.read:
        report = json.loads(pathlib.Path(options.read).read_text(encoding="utf-8"))
    else:
        report = measure(options)
        write_report(options.output, report)
    print(tables(report))
    if draw and options.plot:
        save_figure(options.plot, draw(report))


def describe_run(options: argparse.Namespace) -> Report:
    """The beginning of a report: the machine, the version of JAX, and the options given."""
    given = {name: value for name, value in vars(options).items() if name not in _FILES}
    return {"hardware": hardware(), "jax": jax.__version__, "options": given}


def write_report(file: str | None, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON, if there is a file to write it to."""
    if file:
        write_text(file, json.dumps(report, indent=2) + "\n")


def save_figure(file: str, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with atomic_write(file) as local:
        figure.savefig(local, format="png", dpi=150)


def hardware() -> str:
    """The machine in words: its accelerator, or its cores."""
    if jax.default_backend() == "cpu":
        cores = cpu_cores()
        return f"{cores} CPU core{'s' if cores > 1 else ''} ({platform.machine()})"
    return jax.devices()[0].device_kind


def random_batch(scenes: int, *, views: int, targets: int, size: int, timed: bool = False) -> Batch:
    """Noise seen by cameras that look one way from random places, in images of size × size px.

    `timed` at random times.
    """
    rng = np.random.default_rng(0)

    def some(count: int) -> Views:
        c2w = np.tile(np.eye(4, dtype=np.float32), (scenes, count, 1, 1))
        c2w[..., :3, 3] = rng.uniform(-1, 1, (scenes, count, 3))
        time = rng.uniform(size=(scenes, count)).astype(np.float32) if timed else None
        cameras = Cameras(c2w, np.full((scenes, count, 4), size / 2, np.float32), time)
        images = rng.integers(0, 256, (scenes, count, size, size, 3), np.uint8)
        return Views(images, cameras, np.zeros((scenes, count), np.int32))

    rows = np.arange(scenes, dtype=np.int32)
    return Batch(some(views), some(targets), rows, rows >= 0, 0 * rows)


def render(model: ViewSynthesisModel, batch: Batch) -> jax.Array:
    """From 8-bit input images and all cameras to the targets' pixels."""
    images = to_unit(batch.inputs.images)
    return model(images, batch.inputs.cameras, batch.targets.cameras)


def measure_call(
    function: Callable[..., Any],
    args: tuple,
    flops: int,
    repeats: int,
    *,
    enough_seconds: float = math.inf,
    clock: str = "wall",
) -> Report:
    """Time and memory of a compiled call that donates nothing: the median of up to `repeats` calls.

    The counted calls take about `enough_seconds` at most; one is always made. The first call warms
    up and is not counted, unless it alone takes so long.
    """
    device = jax.devices()[0]
    args = jax.device_put(args, device)
    compiled = jax.jit(function).lower(*args).compile()
    before = device.memory_stats() or {}
    times = [timed(compiled, *args, clock=clock)[1]]
    if times[0] < enough_seconds:
        calls = max(1, int(min(repeats, enough_seconds / times[0])))
        times = [timed(compiled, *args, clock=clock)[1] for _ in range(calls)]
    seconds, memory = statistics.median(times), compiled.memory_analysis()
    return {
        "seconds": seconds,
        "seconds_min_max": [min(times), max(times)],
        "calls": len(times),
        "flops": flops,
        "flops_by_xla": (compiled.cost_analysis() or {}).get("flops"),
        "flops_per_second": flops / seconds,
        "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
        "output_bytes": getattr(memory, "output_size_in_bytes", None),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "allocated_bytes": _allocated(before, device.memory_stats() or {}),
    }


def timed(call: Callable[..., Any], *args: Any, clock: str = "wall") -> tuple[Any, float]:
    """The result of a call, and the seconds until it is ready by one of `CLOCKS`."""
    now = CLOCKS[clock]
    start = now()
    result = jax.block_until_ready(call(*args))
    return result, now() - start


def _allocated(before: Mapping[str, int], after: Mapping[str, int]) -> int | None:
    """Peak bytes on the device above those in use before; None where they are not known.

    A device remembers the peak of the whole process, and so hides a smaller one.
    """
    peak = after.get("peak_bytes_in_use", 0)
    return peak - before["bytes_in_use"] if peak > before.get("peak_bytes_in_use", 0) else None


def matmul_peak(dtype: str, sizes: Sequence[int], clock: str = "wall") -> Report:
    """The best rate of square matmuls, with the `size` that reached it."""
    rates = []
    for size in sizes:
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        rates.append(
            {"size": size, **measure_call(jnp.matmul, (a, a), 2 * size**3, 5, clock=clock)}
        )
    return max(rates, key=lambda rate: rate["flops_per_second"])


def label_lines(axes: Axes) -> None:
    """A legend at the right of the axes, its names in the order in which the lines end."""
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    named.sort(key=lambda line: line.get_ydata()[-1], reverse=True)
    at = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles=named, frameon=False, fontsize=8, **at)


def plain_axes(axes: Axes) -> None:
    """The style of all plots: a light grid, and no frame above and to the right."""
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def view_axis(axes: Axes, views: Sequence[int]) -> None:
    """Makes the scale of the views logarithmic, with a tick for each number of them."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(views, [str(count) for count in views])
    axes.set_xticks([], minor=True)
    plain_axes(axes)


def log_axes(axes: Axes, views: Sequence[int]) -> None:
    """Makes both scales logarithmic with plain numbers, over the views."""
    view_axis(axes, views)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter("")
