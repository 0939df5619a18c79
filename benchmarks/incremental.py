"""The cache over the number of views: time to add, remove and render, against a full pass.

    python -m benchmarks.incremental --dtype=bfloat16 --output=cache.json --plot=cache.png  # a GPU
    python -m benchmarks.incremental --size=128 --layers=4 --output=cache.json --plot=cache.png
    python -m benchmarks.incremental --read=cache.json --plot=cache.png  # table and plot once more

Efficient-LVSM with random weights, one scene, one cache with places for the most views. At each
number of views one more is added and removed again, and 1 and 8 targets are rendered; `from
scratch` is what that costs without a cache: a full pass over all views. The floor of a render is
its FLOPs at the largest matmul rate of this machine in the same run, or the bytes of the cache that
it reads at the largest copy rate, whichever is longer. Medians of --repeats calls.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

import lvsm_jax
from benchmarks.common import hardware, log_axes, markdown_table, matmul_peak, random_batch
from lvsm_jax.cache import CACHE_DTYPES, ViewCache
from lvsm_jax.files import atomic_write, write_text
from lvsm_jax.flops import forward_macs


def main(arguments: list[str] | None = None) -> None:
    """Prints a table; writes JSON and a plot."""
    options = _parser().parse_args(arguments)
    report = json.loads(options.read.read_text()) if options.read else measure(options)
    print(table(report))
    if options.output and not options.read:
        write_text(options.output, json.dumps(report, indent=2) + "\n")
    if options.plot:
        with atomic_write(options.plot) as local:
            draw(report).savefig(local, format="png", dpi=150)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of views, from few to many, in one growing cache."""
    config = lvsm_jax.EfficientLVSMConfig(
        num_layers=options.layers, width=options.width, dtype=options.dtype
    )
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    counts, size = sorted(options.views), (options.size, options.size)
    cache = lvsm_jax.init_cache(model, 1, counts[-1] + 1, size, dtype=options.cache_dtype)
    peak = matmul_peak(options.dtype, options.matmul_sizes, 5)["flops_per_second"]
    report = {
        "hardware": hardware(),
        "jax": jax.__version__,
        "options": {k: v for k, v in vars(options).items() if k not in ("output", "plot", "read")},
        "config": dataclasses.asdict(config),
        "matmul_flops_per_second": peak,
        "copy_bytes_per_second": copy_rate(),
        "bytes_a_view": cache.nbytes // cache.max_views,
        "rows": [],
    }
    batch = random_batch(1, views=1, targets=max(options.targets), size=options.size)
    one = jax.device_put((batch.inputs.images / np.float32(255), batch.inputs.cameras))
    for count in tqdm(counts, "views", file=sys.stderr):
        while int(cache.num_views[0]) < count:
            cache = lvsm_jax.add_views(model, cache, *one)
        cache, row = measure_changes(model, cache, one, options.repeats)
        for targets in options.targets:
            cameras = jax.tree.map(lambda x, t=targets: x[:, :t], batch.targets.cameras)
            seconds = timed(
                lambda cache=cache, cameras=cameras, targets=targets: lvsm_jax.render(
                    model, cache, cameras, targets_at_once=targets
                ),
                options.repeats,
            )
            row[f"render_{targets}"] = seconds
            row[f"floor_{targets}"] = floor(report, config, count, targets, options)
            if count <= options.scratch:
                row[f"scratch_{targets}"] = from_scratch(model, count, targets, options)
        report["rows"].append({"views": count, **row})
    return report


def measure_changes(
    model: lvsm_jax.EfficientLVSM, cache: ViewCache, one: tuple, repeats: int
) -> tuple[ViewCache, dict[str, float]]:
    """Seconds of adding a view and of removing the first; the cache holds as many after it."""
    times: dict[str, list[float]] = {"add": [], "remove": []}
    for _ in range(repeats + 1):  # the first may compile
        for name, change in (
            ("add", lambda cache: lvsm_jax.add_views(model, cache, *one)),
            ("remove", lambda cache: lvsm_jax.remove_views(cache, 0)),
        ):
            start = time.perf_counter()
            cache = jax.block_until_ready(change(cache))
            times[name].append(time.perf_counter() - start)
    return cache, {name: statistics.median(values[1:]) for name, values in times.items()}


def from_scratch(
    model: lvsm_jax.EfficientLVSM, views: int, targets: int, options: argparse.Namespace
) -> float:
    """Seconds of a full pass."""
    batch = random_batch(1, views=views, targets=targets, size=options.size)
    images = jnp.asarray(batch.inputs.images / np.float32(255))
    cameras = jax.device_put((batch.inputs.cameras, batch.targets.cameras))
    return timed(lambda: model(images, *cameras), options.repeats)


def timed(call: Callable[[], jax.Array], repeats: int) -> float:
    """Median seconds of a call, compilation apart."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes a second that an elementwise operation reads and writes, of an array beyond caches."""
    x = jnp.zeros(2**26, jnp.float32)
    increment = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / timed(lambda: increment(x), 5)


def floor(
    report: dict[str, Any],
    config: lvsm_jax.EfficientLVSMConfig,
    views: int,
    targets: int,
    options: argparse.Namespace,
) -> float:
    """Seconds that a render cannot do without on this machine."""
    sizes = {"height": options.size, "width": options.size}
    # Keys and values are there: what the inputs cost alone does not count.
    whole = forward_macs(config, views=views, targets=targets, **sizes)
    inputs = forward_macs(config, views=views, targets=0, **sizes)
    arithmetic = (whole.flops - inputs.flops) / report["matmul_flops_per_second"]
    return max(arithmetic, views * report["bytes_a_view"] / report["copy_bytes_per_second"])


def table(report: dict[str, Any]) -> str:
    """What was measured, in milliseconds."""
    targets = report["options"]["targets"]
    header = ["views", "cache, MB", "add", "remove"]
    for t in targets:
        header += [f"render {t}", "over floor", "from scratch", "times faster"]
    rows = []
    for row in report["rows"]:
        cells = [
            str(row["views"]),
            f"{row['views'] * report['bytes_a_view'] / 1e6:.0f}",
            _ms(row["add"]),
            _ms(row["remove"]),
        ]
        for t in targets:
            ours, scratch = row[f"render_{t}"], row.get(f"scratch_{t}", math.nan)
            gain = (scratch) / (row["add"] + ours)
            cells += [_ms(ours), f"{ours / row[f'floor_{t}']:.2f}×", _ms(scratch), f"{gain:.1f}×"]
        rows.append([cell.replace("nan×", "–").replace("nan", "–") for cell in cells])
    adds = [row["add"] for row in report["rows"]]
    removes = [row["remove"] for row in report["rows"]]
    return "\n\n".join(
        [
            _title(report),
            markdown_table(header, rows, left=0),
            "Milliseconds; `times faster`: adding a view and rendering, against the full pass. "
            f"From the least to the most, add varies by {max(adds) / min(adds) - 1:.1%}, "
            f"remove by {max(removes) / min(removes) - 1:.1%}.",
        ]
    )


def draw(report: dict[str, Any]) -> Figure:
    """Milliseconds over the views in the cache."""
    rows = report["rows"]
    views = [row["views"] for row in rows]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_title(report), fontsize=10)
    colors = iter(("#0072B2", "#D55E00", "#009E73", "#CC79A7"))
    for name in ("add", "remove"):
        axes.plot(views, [row[name] * 1e3 for row in rows], "o-", color=next(colors), label=name)
    for targets in report["options"]["targets"]:
        color, plural = next(colors), "s" if targets > 1 else ""
        label = f"render {targets} target{plural}"
        axes.plot(
            views, [row[f"render_{targets}"] * 1e3 for row in rows], "o-", color=color, label=label
        )
        known = [row for row in rows if f"scratch_{targets}" in row]
        axes.plot(
            [row["views"] for row in known],
            [row[f"scratch_{targets}"] * 1e3 for row in known],
            "o--",
            color=color,
            alpha=0.6,
            label=f"{targets} target{plural} from scratch",
        )
    log_axes(axes, views)
    axes.set(xlabel="views in the cache", ylabel="ms")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _title(report: dict[str, Any]) -> str:
    options, config = report["options"], report["config"]
    return (
        f"{report['hardware']}, {options['size']}×{options['size']} px, {config['num_layers']} "
        f"layers of width {config['width']}, {options['dtype']}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.incremental",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--views", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="in the cache")
    add("--targets", type=int, nargs="+", default=[1, 8], help="rendered at once (1 8)")
    add("--size", type=int, default=256, help="height and width in pixels (256)")
    add("--layers", type=int, default=12, help="of each stream (12)")
    add("--width", type=int, default=768, help="channels of a token (768)")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the model")
    add("--cache-dtype", choices=CACHE_DTYPES, help="of keys and values (as the model)")
    add("--repeats", type=int, default=5, help="calls of which the median counts (5)")
    add("--scratch", type=int, default=16, help="most views of a full pass (16)")
    add("--matmul-sizes", type=int, nargs="+", default=[1024, 2048], help="sides of the matmuls")
    add("--output", type=pathlib.Path, help="JSON file to write")
    add("--plot", type=pathlib.Path, help="PNG file to write")
    add("--read", type=pathlib.Path, help="JSON file of an earlier run, instead of measuring")
    return parser


if __name__ == "__main__":
    main()
