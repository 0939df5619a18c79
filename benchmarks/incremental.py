"""The cache over the number of views: time to add, remove and render, memory, and quality.

    python -m benchmarks.incremental --dtype=bfloat16 --output=cache.json --plot=cache.png  # a GPU
    python -m benchmarks.incremental --size=128 --layers=4 --output=cache.json --plot=cache.png
    python -m benchmarks.incremental --read=cache.json --plot=cache.png  # table and plot once more
    python -m benchmarks.incremental --export=runs/re10k/export --scenes data/re10k/test:KEY ...

Efficient-LVSM, one scene, one cache with slots for the most views. At each number of views one
more is added and removed again, and 1 and 8 targets are rendered. `From scratch` is what that costs
without a cache, a full pass over all views, as LVSM decoder-only always does, which has twice the
layers in one stream. The floor of a render is its FLOPs at the largest matmul rate of this machine
in the same run, or the bytes of the cache that it reads at the largest copy rate, whichever is
longer. Medians of --repeats rounds, each over all numbers of views, so that a slow moment of the
machine does not fall on one of them. Weights are random, unless --export is given.

With --scenes, photographs as `lvsm render` takes them, PSNR by number of views and dtype of the
cache is measured too. Of the photographs in the middle of a scene eight, evenly spaced, are
targets; of the others as many as asked are inputs, evenly spaced from the first to the last (one:
the middle). All goes through `lvsm_jax.Session`, as in an application: the inputs alone fix frame
and scale.
"""

import argparse
import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

import lvsm_jax
from benchmarks import common
from benchmarks.common import Report, markdown_table, measure_call, random_batch, timed
from input_pipeline.clip_scene import open_scene
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.cost.flops import forward_macs
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.models.efficient_lvsm import CACHE_DTYPES
from lvsm_jax.rendering.view_cache import ViewCache
from lvsm_jax.scenes.readers import Scene, ScenePhotograph

CHANGES = ("add", "remove")
SPAN = 81  # photographs of a scene that are looked at
TARGETS = 8  # of them


@program
def main(arguments: list[str]) -> None:
    """Prints tables; writes JSON and a plot."""
    common.report_benchmark(_parser().parse_args(arguments), measure, tables, draw)


def measure(options: argparse.Namespace) -> Report:
    """All numbers of views: in the cache, from scratch, and as pictures."""
    if options.scenes and not options.export:
        raise UserError("--scenes need --export: random weights have no quality")
    model = _model(options)
    config = model.config
    report = {**common.describe_run(options), "config": dataclasses.asdict(config)}
    before = _peaks(config.dtype, options)
    report |= measure_cache(model, options)
    after = _peaks(config.dtype, options)
    # What else the machine does slows some of it: the faster moment says what it can do.
    report |= {name: max(before[name], after[name]) for name in before}
    full_passes = {  # names, models and most views
        "scratch": (model, options.scratch),
        "decoder_only": (_decoder_only(config), options.decoder_only),
    }
    limits = {"repeats": min(options.repeats, 3), "enough_seconds": options.max_seconds}
    for row, t in tqdm([*itertools.product(report["rows"], options.targets)], "from scratch"):
        row[f"floor_{t}"] = floor(report, config, row["views"], t, options.size)
        batch = random_batch(1, views=row["views"], targets=t, size=options.size)
        for name, (other, most_views) in full_passes.items():
            if row["views"] <= most_views:
                full_pass = measure_call(common.render, (other, batch), 0, **limits)
                row[f"{name}_{t}"] = full_pass["seconds"]
                row[f"{name}_{t}_bytes"] = full_pass["temporary_bytes"]
    if options.scenes:
        counts = sorted(options.views)
        report["quality"] = measure_quality(options.export, options.scenes, counts, options.size)
    return report


def _peaks(dtype: str, options: argparse.Namespace) -> dict[str, float]:
    """The largest rates of this machine: of matmuls, and of copying an array beyond caches."""
    x = jnp.zeros(2**26, jnp.float32)
    copy = measure_call(lambda x: x + 1, (x,), 0, 5)
    matmul = common.matmul_peak(dtype, options.matmul_sizes)
    return {
        "matmul_flops_per_second": matmul["flops_per_second"],
        "copy_bytes_per_second": 2 * x.nbytes / copy["seconds"],
    }


def measure_cache(model: lvsm_jax.EfficientLVSM, options: argparse.Namespace) -> Report:
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
    rounds: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for _ in tqdm(range(options.repeats + 1), "rounds"):  # the first may compile
        for count in counts:
            # All slots hold views: how many of them count is one number.
            cache = dataclasses.replace(cache, num_views=jnp.full(1, count, jnp.int32))
            jax.block_until_ready(cache)
            seconds: dict[str, float] = {}
            cache, seconds["add"] = timed(lvsm_jax.add_views, model, cache, *one)
            cache, seconds["remove"] = timed(lvsm_jax.remove_views, cache, 0)
            for t, those in cameras.items():
                seconds[f"render_{t}"] = timed(_render_all, model, cache, those)[1]
            rounds[count].append(seconds)
    rows = [
        {"views": count}
        | {name: statistics.median(seconds[name] for seconds in counted) for name in counted[0]}
        for count, (_, *counted) in rounds.items()
    ]
    renders = {t: measure_call(_render_all, (model, cache, cameras[t]), 0, 1) for t in cameras}
    return {
        "bytes_a_view": cache.nbytes // cache.max_views,
        "temporary_bytes": {str(t): render["temporary_bytes"] for t, render in renders.items()},
        "rows": rows,
    }


def _render_all(
    model: lvsm_jax.EfficientLVSM, cache: ViewCache, cameras: lvsm_jax.Cameras
) -> jax.Array:
    return lvsm_jax.render(model, cache, cameras, targets_at_once=cameras.shape[1])


def _model(options: argparse.Namespace) -> lvsm_jax.EfficientLVSM:
    dtypes = {"dtype": options.dtype, "cache_dtype": options.cache_dtype}
    if options.export:
        return lvsm_jax.load(options.export, **dtypes)
    sizes = {"num_layers": options.layers, "width": options.width}
    return lvsm_jax.EfficientLVSM(lvsm_jax.EfficientLVSMConfig(**sizes, **dtypes), rngs=nnx.Rngs(0))


def _decoder_only(config: lvsm_jax.EfficientLVSMConfig) -> lvsm_jax.LVSMDecoderOnly:
    """The model of as many layers in one stream as Efficient-LVSM has in two."""
    names = ("width", "head_dim", "patch_size", "mlp_ratio", "dtype", "attention")
    sizes = {name: getattr(config, name) for name in names} | {"num_layers": 2 * config.num_layers}
    return lvsm_jax.LVSMDecoderOnly(lvsm_jax.LVSMDecoderOnlyConfig(**sizes), rngs=nnx.Rngs(0))


def floor(report: Report, config: ModelConfig, views: int, targets: int, size: int) -> float:
    """Seconds that a render cannot do without on this machine."""
    sizes = {"height": size, "width": size}
    # The cache holds keys and values: the cost of the inputs alone does not count.
    whole = forward_macs(config, views=views, targets=targets, **sizes)
    inputs = forward_macs(config, views=views, targets=0, **sizes)
    arithmetic = (whole.flops - inputs.flops) / report["matmul_flops_per_second"]
    return max(arithmetic, views * report["bytes_a_view"] / report["copy_bytes_per_second"])


def measure_quality(export: str, scenes: Sequence[str], counts: Sequence[int], size: int) -> Report:
    """Mean PSNR of all targets by number of input views and dtype of the cache.

    Where the cache is not float32, `difference` is the PSNR of these renders against those of the
    float32 cache, None if they are equal. Counts for which a scene has too few photographs are in
    `left_out`.
    """
    chosen = [split_photographs(open_scene(scene)) for scene in scenes]
    fewest = min(len(inputs) for inputs, _ in chosen)
    possible = [count for count in counts if count <= fewest]
    if not possible:
        raise UserError(f"a scene has {fewest} photographs to choose {min(counts)} inputs from")
    sizes = {"image_height": size, "max_views": max(possible), "targets_at_once": TARGETS}
    truth = [target.load().cropped_to(size, size) for _, targets in chosen for target in targets]
    truth = np.stack(truth).astype(np.float32) / 255
    rows, exact = [], {}
    with tqdm(total=len(possible) * len(CACHE_DTYPES), desc="quality") as progress:
        for dtype in CACHE_DTYPES:
            model = lvsm_jax.load(export, cache_dtype=dtype)
            for count in possible:
                pictures = [_render_targets(model, *scene, count, sizes) for scene in chosen]
                renders = np.concatenate(pictures)
                row = {"views": count, "dtype": dtype, "psnr": float(psnr(truth, renders).mean())}
                error = float(np.square(renders - exact.setdefault(count, renders)).mean())
                if dtype != CACHE_DTYPES[0]:
                    row["difference"] = -10 * math.log10(error) if error else None
                rows.append(row)
                progress.update()
    left_out = [count for count in counts if count > fewest]
    return {"scenes": list(scenes), "targets": TARGETS, "rows": rows, "left_out": left_out}


def split_photographs(scene: Scene) -> tuple[list[ScenePhotograph], list[ScenePhotograph]]:
    """Photographs to choose inputs from, and targets, which are none of them."""
    first = max(0, (len(scene.photographs) - SPAN) // 2)
    span = scene.photographs[first : first + SPAN]
    if len(span) < TARGETS + 2:
        raise UserError(f"{scene.source} has {len(span)} photographs, needed are {TARGETS + 2}")
    places = np.linspace(0, len(span) - 1, TARGETS + 2).round().astype(int)[1:-1]
    inputs = [photograph for i, photograph in enumerate(span) if i not in places]
    return inputs, [span[i] for i in places]


def _render_targets(
    model: lvsm_jax.EfficientLVSM,
    inputs: Sequence[ScenePhotograph],
    targets: Sequence[ScenePhotograph],
    count: int,
    sizes: dict[str, int],
) -> np.ndarray:
    """`[t, h, w, 3]`, float in [0, 1], rounded to 8 bits as pictures are."""
    places = np.linspace(0, len(inputs) - 1, count) if count > 1 else [len(inputs) // 2]
    with lvsm_jax.Session(model, **sizes) as session:
        session.add([inputs[round(i)].load() for i in places])
        renders = session.render_path([target.camera for target in targets])
        return np.stack(list(renders)).astype(np.float32) / 255


def tables(report: Report) -> str:
    """What was measured, as Markdown."""
    rows, targets = report["rows"], report["options"]["targets"]
    times = ["views", "cache, MB", "add", "remove"]
    memory = ["MB at most: views"]
    for t in targets:
        times += [f"render {t}", "over floor", "from scratch", "decoder-only"]
        memory += [f"render {t}", "from scratch", "decoder-only"]
    time_lines, memory_lines = [], []
    for row in rows:
        views, cached = row["views"], row["views"] * report["bytes_a_view"]
        time_line = [views, _megabytes(cached), _ms(row["add"]), _ms(row["remove"])]
        memory_line = [views]
        for t in targets:
            ours = row[f"render_{t}"]
            time_line += [_ms(ours), f"{ours / row[f'floor_{t}']:.2f}×"]
            memory_line.append(_megabytes(cached + report["temporary_bytes"][str(t)]))
            for name in ("scratch", "decoder_only"):
                other, size = row.get(f"{name}_{t}"), row.get(f"{name}_{t}_bytes")
                time_line.append(other and f"{_ms(other)} ({other / (row['add'] + ours):.1f}×)")
                memory_line.append(size and _megabytes(size))
        time_lines.append(time_line)
        memory_lines.append(memory_line)
    spread = {name: [row[name] for row in rows] for name in CHANGES}
    varies = [f"{name} varies by {max(s) / min(s) - 1:.1%}" for name, s in spread.items()]
    parts = [
        _title(report),
        markdown_table(times, time_lines, text=0),
        "Milliseconds; in brackets, over adding a view and rendering. From the least to the most, "
        f"{' and '.join(varies)}.",
        markdown_table(memory, memory_lines, text=0),
    ]
    if "quality" in report:
        parts.append(_quality_table(report["quality"]))
    return "\n\n".join(parts)


def _quality_table(quality: dict[str, Any]) -> str:
    """PSNR by views, and what the smaller dtypes of the cache lose."""
    rows = {(row["views"], row["dtype"]): row for row in quality["rows"]}
    exact, *smaller = CACHE_DTYPES
    header = ["views", f"PSNR, {exact} cache, dB"]
    for dtype in smaller:
        header += [f"{dtype}: lost, dB", f"{dtype} against {exact}, dB"]
    cells = []
    for count in sorted({views for views, _ in rows}):
        best = rows[count, exact]["psnr"]
        line = [count, f"{best:.3f}"]
        for dtype in smaller:
            lost, difference = best - rows[count, dtype]["psnr"], rows[count, dtype]["difference"]
            line += [f"{lost:.4f}", "equal" if difference is None else f"{difference:.1f}"]
        cells.append(line)
    notes = f"{len(quality['scenes'])} scenes, {quality['targets']} targets each."
    if quality["left_out"]:
        notes += f" Too few photographs for {quality['left_out']} views."
    return f"{markdown_table(header, cells, text=0)}\n\n{notes}"


def draw(report: Report) -> Figure:
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
    common.log_axes(axes, [row["views"] for row in rows])
    axes.set(xlabel="views in the cache", ylabel="ms")
    axes.set_title(_title(report), fontsize=10)
    common.label_lines(axes)
    if quality:
        _draw_quality(quality, rest[0])
    return figure


def _draw_quality(quality: dict[str, Any], axes: Axes) -> None:
    """PSNR over the number of views."""
    for dtype, style in zip(CACHE_DTYPES, ("o-", "s--", "^:"), strict=True):
        rows = [row for row in quality["rows"] if row["dtype"] == dtype]
        x, y = [row["views"] for row in rows], [row["psnr"] for row in rows]
        axes.plot(x, y, style, label=f"cache in {dtype}")
    common.view_axis(axes, sorted({row["views"] for row in quality["rows"]}))
    axes.set(xlabel="input views", ylabel="PSNR, dB")
    axes.set_title(f"{len(quality['scenes'])} real scenes", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _title(report: Report) -> str:
    options, config = report["options"], report["config"]
    return (
        f"{report['hardware']}, {options['size']}×{options['size']} px, {config['num_layers']} "
        f"layers of width {config['width']}, {options['dtype']}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.incremental", __doc__, plot=True)
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
    add("--export", type=path, help="weights, instead of random ones of --layers, --width")
    add("--scenes", nargs="+", help="scenes to measure PSNR on, as lvsm render takes them")
    add("--matmul-sizes", type=int, nargs="+", default=[1024, 2048], help="sides of the matmuls")
    return parser


if __name__ == "__main__":
    main()
