"""The cache over the number of views: time to add, remove and render, memory, and quality.

    python -m benchmarks.incremental --dtype=bfloat16 --output=cache.json --plot=cache.png  # a GPU
    python -m benchmarks.incremental --size=128 --layers=4 --output=cache.json --plot=cache.png
    python -m benchmarks.incremental --read=cache.json --plot=cache.png  # table and plot once more
    python -m benchmarks.incremental --export=runs/re10k/export --scenes data/re10k/test:KEY ...

Efficient-LVSM, one scene, one cache with places for the most views. At each number of views one
more is added and removed again, and 1 and 8 targets are rendered. `From scratch` is what that costs
without a cache, a full pass over all views; so much it always costs LVSM decoder-only, which has
twice the layers in one stream. The floor of a render is its FLOPs at the largest matmul rate of
this machine in the same run, or the bytes of the cache that it reads at the largest copy rate,
whichever is longer. Medians of --repeats rounds, each over all numbers of views, so that a slow
moment of the machine does not fall on one of them.

Weights are random, for time does not depend on them, unless --export names some; with --scenes,
photographs that the `render` program would take, PSNR by number of views and dtype of the
cache is measured too (benchmarks/cache_quality.py).
"""

import argparse
import dataclasses
import json
import os
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
from benchmarks import cache_quality
from benchmarks.common import (
    hardware,
    log_axes,
    markdown_table,
    matmul_peak,
    measured,
    random_batch,
    render,
)
from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.cost.flops import forward_macs
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.models.efficient_lvsm import CACHE_DTYPES
from lvsm_jax.rendering.view_cache import ViewCache

CHANGES = ("add", "remove")


def main(arguments: list[str] | None = None) -> None:
    """Prints a table; writes JSON and a plot."""
    options = _parser().parse_args(arguments)
    try:
        report = json.loads(options.read.read_text()) if options.read else measure(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(report))
    if options.output and not options.read:
        write_text(options.output, json.dumps(report, indent=2) + "\n")
    if options.plot:
        with atomic_write(options.plot) as local:
            draw(report).savefig(local, format="png", dpi=150)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of views: in the cache, from scratch, and as pictures."""
    if options.scenes and not options.export:
        raise ValueError("--scenes need --export: random weights have no quality")
    model = _model(options)
    config = model.config
    report = {
        "hardware": hardware(),
        "jax": jax.__version__,
        "options": {
            k: os.fspath(v) if isinstance(v, os.PathLike) else v
            for k, v in vars(options).items()
            if k not in ("output", "plot", "read")
        },
        "config": dataclasses.asdict(config),
    }
    before = peaks(config.dtype, options)
    report |= cached(model, options)
    after = peaks(config.dtype, options)
    # What else the machine does slows some of it: the faster moment says what it can do.
    report |= {name: max(before[name], after[name]) for name in before}
    for row in report["rows"]:
        for targets in options.targets:
            row[f"floor_{targets}"] = floor(report, config, row["views"], targets, options)
    for row in tqdm(report["rows"], "from scratch", file=sys.stderr):
        if row["views"] <= options.scratch:
            row |= from_scratch("scratch", model, row["views"], options)
        if row["views"] <= options.decoder_only:
            row |= from_scratch("decoder_only", _decoder_only(config), row["views"], options)
    if options.scenes:
        report["quality"] = cache_quality.measure(
            options.export, options.scenes, sorted(options.views), size=options.size
        )
    return report


def peaks(dtype: str, options: argparse.Namespace) -> dict[str, float]:
    """The largest rates of this machine, of arithmetic and of memory."""
    matmul = matmul_peak(dtype, options.matmul_sizes, 5)
    return {
        "matmul_flops_per_second": matmul["flops_per_second"],
        "copy_bytes_per_second": copy_rate(),
    }


def cached(model: lvsm_jax.EfficientLVSM, options: argparse.Namespace) -> dict[str, Any]:
    """Rows with the times of changes and renders, and what memory they take."""
    counts, size = sorted(options.views), (options.size, options.size)
    cache = lvsm_jax.init_cache(model, 1, counts[-1] + 1, size)
    batch = random_batch(1, views=1, targets=max(options.targets), size=options.size)
    one = jax.device_put((batch.inputs.images / np.float32(255), batch.inputs.cameras))
    for _ in range(counts[-1]):
        cache = lvsm_jax.add_views(model, cache, *one)
    cameras = {
        t: jax.device_put(jax.tree.map(lambda x, t=t: x[:, :t], batch.targets.cameras))
        for t in options.targets
    }
    times: dict[int, dict[str, list[float]]] = {count: {} for count in counts}
    for _ in tqdm(range(options.repeats + 1), "rounds", file=sys.stderr):  # the first may compile
        for count in counts:
            # All places hold views: how many of them count is one number.
            cache = dataclasses.replace(cache, num_views=jnp.full(1, count, jnp.int32))
            cache = _one_round(model, cache, one, cameras, times[count])
    rows = [
        {"views": count}
        | {name: statistics.median(some[1:]) for name, some in times[count].items()}
        for count in counts
    ]
    temporary = {
        str(t): measured(_render_all, (model, cache, cameras[t]), 0, 1)["temporary_bytes"]
        for t in options.targets
    }
    bytes_a_view = cache.nbytes // cache.max_views
    return {"bytes_a_view": bytes_a_view, "temporary_bytes": temporary, "rows": rows}


def _one_round(
    model: lvsm_jax.EfficientLVSM,
    cache: ViewCache,
    one: tuple,
    cameras: dict[int, lvsm_jax.Cameras],
    times: dict[str, list[float]],
) -> ViewCache:
    """Notes the seconds of adding a view, of removing the first, and of renders."""

    def noted(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    jax.block_until_ready(cache)
    cache = noted("add", lambda: lvsm_jax.add_views(model, cache, *one))
    cache = noted("remove", lambda: lvsm_jax.remove_views(cache, 0))
    for targets, those in cameras.items():
        noted(f"render_{targets}", lambda those=those: _render_all(model, cache, those))
    return cache


def _render_all(
    model: lvsm_jax.EfficientLVSM, cache: ViewCache, cameras: lvsm_jax.Cameras
) -> jax.Array:
    return lvsm_jax.render(model, cache, cameras, targets_at_once=cameras.shape[1])


def from_scratch(
    name: str, model: ViewSynthesisModel, views: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds and temporary bytes of full passes."""
    row = {}
    for targets in options.targets:
        batch = random_batch(1, views=views, targets=targets, size=options.size)
        calls = min(options.repeats, 3)
        one = measured(render, (model, batch), 0, calls, enough_seconds=options.max_seconds)
        row[f"{name}_{targets}"] = one["seconds"]
        row[f"{name}_{targets}_bytes"] = one["temporary_bytes"]
    return row


def _model(options: argparse.Namespace) -> lvsm_jax.EfficientLVSM:
    """The weights of --export, or random ones of the size that is asked for."""
    if not options.export:
        config = lvsm_jax.EfficientLVSMConfig(
            num_layers=options.layers,
            width=options.width,
            dtype=options.dtype,
            cache_dtype=options.cache_dtype,
        )
        return lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    return lvsm_jax.load(options.export, dtype=options.dtype, cache_dtype=options.cache_dtype)


def _decoder_only(config: lvsm_jax.EfficientLVSMConfig) -> lvsm_jax.LVSMDecoderOnly:
    """The model of as many layers in one stream as Efficient-LVSM has in two."""
    sizes = ("width", "head_dim", "patch_size", "mlp_ratio", "dtype", "attention")
    given = {name: getattr(config, name) for name in sizes}
    other = lvsm_jax.LVSMDecoderOnlyConfig(num_layers=2 * config.num_layers, **given)
    return lvsm_jax.LVSMDecoderOnly(other, rngs=nnx.Rngs(0))


def copy_rate() -> float:
    """Bytes a second that an elementwise operation reads and writes, of an array beyond caches."""
    x = jnp.zeros(2**26, jnp.float32)
    return 2 * x.nbytes / measured(lambda x: x + 1, (x,), 0, 5)["seconds"]


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
    """What was measured, as Markdown."""
    rows, targets = report["rows"], report["options"]["targets"]
    header = ["views", "cache, MB", "add", "remove"]
    for t in targets:
        header += [f"render {t}", "over floor", "from scratch", "decoder-only"]
    cells = []
    for row in rows:
        line = [
            str(row["views"]),
            f"{row['views'] * report['bytes_a_view'] / 1e6:.0f}",
            _ms(row["add"]),
            _ms(row["remove"]),
        ]
        for t in targets:
            ours = row[f"render_{t}"]
            line += [_ms(ours), f"{ours / row[f'floor_{t}']:.2f}×"]
            for name in ("scratch", "decoder_only"):
                other = row.get(f"{name}_{t}")
                gain = f" ({other / (row['add'] + ours):.1f}×)" if other else ""
                line.append(f"{_ms(other)}{gain}" if other else "–")
        cells.append(line)
    parts = [
        _title(report),
        markdown_table(header, cells, left=0),
        "Milliseconds; in brackets, over adding a view and rendering. From the least to the most, "
        + " and ".join(f"{name} varies by {_variation(rows, name):.1%}" for name in CHANGES)
        + ".",
        memory_table(report),
    ]
    if "quality" in report:
        parts.append(cache_quality.table(report["quality"]))
    return "\n\n".join(parts)


def memory_table(report: dict[str, Any]) -> str:
    """Megabytes: what is filled of the cache and a render's temporaries, against full passes."""
    rows, targets = report["rows"], report["options"]["targets"]
    header, cells = ["MB at most: views"], []
    for t in targets:
        header += [f"render {t}", "from scratch", "decoder-only"]
    for row in rows:
        line = [str(row["views"])]
        for t in targets:
            ours = row["views"] * report["bytes_a_view"] + report["temporary_bytes"][str(t)]
            others = (row.get(f"{name}_{t}_bytes") for name in ("scratch", "decoder_only"))
            line += [f"{x / 1e6:.0f}" if x else "–" for x in (ours, *others)]
        cells.append(line)
    return markdown_table(header, cells, left=0)


def _variation(rows: list[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows]
    return max(values) / min(values) - 1


def draw(report: dict[str, Any]) -> Figure:
    """Milliseconds over the views in the cache, and where there are scenes, PSNR."""
    quality = report.get("quality")
    figure = Figure(figsize=(14 if quality else 9.5, 4.8), layout="constrained")
    axes, *rest = np.atleast_1d(figure.subplots(1, 2 if quality else 1))
    rows = report["rows"]
    colors = iter(("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"))

    def line(name: str, label: str, style: str, color: str) -> None:
        known = [row for row in rows if name in row]
        x, y = [row["views"] for row in known], [row[name] * 1e3 for row in known]
        axes.plot(x, y, style, color=color, label=label, alpha=1 if style == "o-" else 0.6)

    for name in CHANGES:
        line(name, name, "o-", next(colors))
    for t in report["options"]["targets"]:
        color, targets = next(colors), f"{t} target{'s' if t > 1 else ''}"
        line(f"render_{t}", f"render {targets}", "o-", color)
        line(f"scratch_{t}", f"{targets} from scratch", "o--", color)
        line(f"decoder_only_{t}", f"{targets}, decoder-only", "s:", color)
    log_axes(axes, [row["views"] for row in rows])
    axes.set(xlabel="views in the cache", ylabel="ms")
    axes.set_title(_title(report), fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if quality:
        cache_quality.draw(quality, rest[0])
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
    add("--cache-dtype", choices=CACHE_DTYPES, default="", help="of the cache (as the model)")
    add("--repeats", type=int, default=5, help="rounds of which the median counts (5)")
    add("--scratch", type=int, default=16, help="most views of a full pass (16)")
    add("--decoder-only", type=int, default=8, help="most views of LVSM decoder-only (8)")
    add("--max-seconds", type=float, default=20.0, help="of full passes; one is always made (20)")
    add("--export", type=pathlib.Path, help="weights, instead of random ones of --layers, --width")
    add(
        "--scenes",
        nargs="+",
        help="scenes to measure PSNR on, see the program render",
    )
    add("--matmul-sizes", type=int, nargs="+", default=[1024, 2048], help="sides of the matmuls")
    add("--output", type=pathlib.Path, help="JSON file to write")
    add("--plot", type=pathlib.Path, help="PNG file to write")
    add("--read", type=pathlib.Path, help="JSON file of an earlier run, instead of measuring")
    return parser


if __name__ == "__main__":
    main()
