"""Everything worth knowing of the device that is here, in order of worth, within some minutes.

    python -m benchmarks.accelerator --minutes=9 --output=gpu.json --plot=gpu.png
    python -m benchmarks.accelerator --minutes=2 --small                   # a rehearsal on a CPU
    python -m benchmarks.accelerator --read=gpu.json --plot=gpu.png      # table and plot once more

Rows: peaks of matmuls and memory; the attention of the published step; that step at 256 px for
each remat policy, the largest batch that fits, with all losses, and at 512 px; rendering; a cache
of 1 to 64 views in bfloat16 and int8, added to and rendered from; worlds. Weights are random. Each
row is written as it comes, so that it may be cut off at any moment; a row is begun only while time
is left. The time to compile counts; compiled programs are kept, so a second run gets further.

Beside the time of a row stands the sum, kernel by kernel, that `lvsm aot` prints for such a device
(`lvsm_jax.cost.kernels`), where its numbers are known.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import lvsm_jax
from benchmarks import common
from benchmarks.common import Report, random_batch
from benchmarks.losses import random_networks, step_flops
from lvsm_jax.common.command_line import program, read_config_file
from lvsm_jax.common.config import section
from lvsm_jax.cost.chips import CHIPS, GPUS, Chip
from lvsm_jax.cost.flops import forward_macs
from lvsm_jax.cost.kernels import kernels, totals
from lvsm_jax.models.architectures import new_model
from lvsm_jax.models.attention import attention
from lvsm_jax.models.layers import REMAT_POLICIES
from lvsm_jax.training.frozen_networks import NO_NETWORKS, Frozen
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.train_state import (
    TrainingConfig,
    compiler_options,
    new_state,
    train_step,
)
from lvsm_jax.worlds import stream
from lvsm_jax.worlds.config import WorldsConfig

_INPUTS, _TARGETS = 2, 6
_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, in full or in small."""

    model: Mapping[str, Any]  # changes of the published model
    image: int
    large: int  # the second stage's image
    scenes: int
    views: tuple[int, ...]  # in a cache
    matmul: int
    worlds: Mapping[str, Any]  # changes of the worlds of `worlds_256`
    seconds: float = 3.0  # that a row's calls take, about
    loss_networks: bool = True  # which have their full size, too large for a rehearsal


FULL = Sizes({}, 256, 512, 8, (1, 4, 16, 64), 8192, {})
SMALL = Sizes(
    {"num_layers": 2, "width": 64, "head_dim": 32, "dtype": "float32"},
    32, 64, 1, (1, 4), 512,
    {"boxes": 12, "ellipsoids": 8, "cylinders": 8, "scenes_at_once": 1}, 0.1, False,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: `prepare` makes a function, its arguments and its FLOPs.

    A function that takes and returns a state gets it donated, and goes on with what it returned.
    """

    group: str
    name: str
    prepare: Callable[[], tuple[Callable[..., Any], tuple, float]]
    carries_state: bool = False


@program
def main(arguments: list[str]) -> None:
    """Prints a table; writes JSON and a plot."""
    common.report_benchmark(_parser().parse_args(arguments), measure, table, draw)


def measure(options: argparse.Namespace) -> Report:
    """All rows for which there is time; the JSON is written anew after each."""
    start, sizes = time.monotonic(), SMALL if options.small else FULL
    report = {**common.describe_run(options), "rows": []}
    chip = _chip()
    for row in rows(sizes):
        about = {"group": row.group, "name": row.name, "begun": time.monotonic() - start}
        if about["begun"] > 60 * options.minutes:
            report["rows"].append(about | {"left_out": "no time left"})
            continue
        try:
            about |= measure_row(row, sizes.seconds, chip)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            about["left_out"] = "too little memory"
        report["rows"].append(about)
        print(_line(about), flush=True)
        common.write_report(options.output, report)
    common.write_report(options.output, report)
    return report


def rows(sizes: Sizes) -> Iterator[Row]:
    """The measurements, the most worth first."""
    config = _config("re10k_256_repa")
    config.model.update(**sizes.model)
    complete = TrainingConfig.of(config)
    no_repa = dataclasses.replace(complete.repa, weight=0.0)
    plain = dataclasses.replace(complete, loss=LossConfig(), repa=no_repa)
    step = functools.partial(_step, size=sizes.image)
    scenes = sizes.scenes

    def with_model(**changes: Any) -> TrainingConfig:
        return dataclasses.replace(plain, model=dataclasses.replace(plain.model, **changes))

    yield Row("peak", "matmul", functools.partial(_matmul, sizes.matmul, plain.model.dtype))
    yield Row("peak", "copy, bytes", functools.partial(_copy, sizes.matmul))
    yield Row("train", "MSE, as configured", functools.partial(step, plain, scenes), True)
    yield Row("render", f"{scenes} scenes", functools.partial(_render, plain, scenes, sizes.image))
    yield Row("render", "1 scene", functools.partial(_render, plain, 1, sizes.image))
    if sizes.loss_networks:
        yield Row("train", "all losses", functools.partial(step, complete, scenes), True)
    for backward in (False, True):
        name = "attention" + " and its gradient" * backward
        yield Row("peak", name, functools.partial(_attention, plain, sizes, backward))
    for dtype, views in itertools.product((plain.model.dtype, "int8"), sizes.views):
        for what in ("render", "add"):
            prepare = functools.partial(_cache, plain, sizes.image, dtype, views, what)
            yield Row("cache", f"{what}, {views} views, {dtype}", prepare, what == "add")
    for remat, unroll in itertools.product(REMAT_POLICIES, (False, True)):
        prepare = functools.partial(step, with_model(remat=remat, unroll=unroll), scenes)
        yield Row("train", f"MSE, remat {remat}" + ", unrolled" * unroll, prepare, True)
    large = functools.partial(_step, plain, max(1, scenes // 4), size=sizes.large)
    yield Row("train", f"MSE, {sizes.large} px", large, True)
    yield Row("worlds", f"{scenes} scenes", functools.partial(_worlds, sizes))
    for factor in (2, 4, 8, 16):
        prepare = functools.partial(step, plain, factor * scenes)
        yield Row("train", f"MSE, {factor * scenes} scenes", prepare, True)


def measure_row(row: Row, seconds: float, chip: Chip | None) -> Report:
    """Compiles, calls once to warm up, and takes the median of calls of about `seconds`."""
    function, args, flops = row.prepare()
    start = time.perf_counter()
    how = {"donate_argnums": 0} if row.carries_state else {}
    if row.group == "train":
        how["compiler_options"] = compiler_options(jax.default_backend())
    compiled = jax.jit(function, **how).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    times: list[float] = []
    while not times or (sum(times[1:]) < seconds and len(times) < 100):
        result, taken = common.timed(compiled, *args)
        times.append(taken)
        if row.carries_state:
            args = (result[0] if isinstance(result, tuple) else result, *args[1:])
    median = statistics.median(times[1:] or times)
    found = {
        "compile_seconds": compile_seconds,
        "seconds": median,
        "calls": len(times) - 1,
        "flops": flops,
        "flops_per_second": flops / median,
        "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
    }
    if chip:
        by_kind = totals(kernels(compiled.as_text()), chip)
        found["sum_seconds"] = sum(total.seconds for total in by_kind.values())
    return found


def _matmul(size: int, dtype: str) -> tuple:
    a = jnp.ones((size, size), dtype)
    return jnp.matmul, (a, a), 2 * size**3


def _copy(size: int) -> tuple:
    """Reads and writes an array; its "FLOPs" are bytes."""
    a = jnp.ones((4 * size, size), jnp.bfloat16)
    return lambda a: a + 1, (a,), 2 * a.nbytes


def _attention(training: TrainingConfig, sizes: Sizes, backward: bool) -> tuple:
    """The cross-attention of the published step."""
    model, tokens = training.model, (sizes.image // training.model.patch_size) ** 2
    heads = model.width // model.head_dim, model.head_dim
    q = jnp.ones((sizes.scenes, _TARGETS * tokens, *heads), model.dtype)
    k = jnp.ones((sizes.scenes, _INPUTS * tokens, *heads), model.dtype)
    flops = 4 * q.size * k.shape[1]
    if not backward:
        return attention, (q, k, k), flops
    gradient = jax.grad(lambda *x: attention(*x).astype(jnp.float32).sum(), (0, 1, 2))
    return gradient, (q, k, k), 3.5 * flops


def _step(training: TrainingConfig, scenes: int, *, size: int) -> tuple:
    batch = random_batch(scenes, views=_INPUTS, targets=_TARGETS, size=size)
    frozen = NO_NETWORKS
    if training.loss.perceptual:
        networks = random_networks(training)
        frozen = Frozen(**{name: networks[name] for name in ("perceptual", "teacher")})
    flops = scenes * step_flops(training, views=_INPUTS, targets=_TARGETS, size=size)
    state = jax.jit(functools.partial(new_state, training, 0))()
    return functools.partial(train_step, training), (state, batch, frozen), flops


def _render(training: TrainingConfig, scenes: int, size: int) -> tuple:
    targets = _TARGETS if scenes > 1 else _TARGETS // 2
    model = new_model(training.model, nnx.Rngs(0))
    batch = random_batch(scenes, views=_INPUTS, targets=targets, size=size)
    macs = forward_macs(training.model, views=_INPUTS, targets=targets, height=size, width=size)
    return common.render, (model, batch), scenes * macs.flops


def _cache(training: TrainingConfig, size: int, dtype: str, views: int, what: str) -> tuple:
    """Rendering a target from a cache that has so many views, or adding one view to it."""
    config = dataclasses.replace(training.model, cache_dtype=dtype)
    model, image = new_model(config, nnx.Rngs(0)), {"height": size, "width": size}
    cache = lvsm_jax.init_cache(model, 1, max(8, views + 1), (size, size))
    cache = dataclasses.replace(cache, num_views=jnp.full(1, views, jnp.int32))
    one = random_batch(1, views=1, targets=1, size=size)
    if what == "render":
        macs = forward_macs(config, views=views, targets=1, **image)
        encoder = forward_macs(config, views=views, targets=0, **image)
        render = functools.partial(lvsm_jax.render, image_size=(size, size))
        flops = macs.flops - encoder.flops
        return lambda model, cache, cameras: render(model, cache, cameras), (
            model, cache, one.targets.cameras,
        ), flops  # fmt: skip
    images = np.asarray(one.inputs.images, np.float32) / 255

    def add(cache: Any, model: Any, images: Any, cameras: Any) -> Any:
        added = lvsm_jax.add_views(model, cache, images, cameras)
        return dataclasses.replace(added, num_views=cache.num_views)  # always the same place

    flops = forward_macs(config, views=1, targets=0, **image).flops
    return add, (cache, model, images, one.inputs.cameras), flops


def _worlds(sizes: Sizes) -> tuple:
    config = _config("worlds_256")
    config.worlds.update(**sizes.worlds)
    block = stream.Block(
        section(config, "worlds", WorldsConfig), config.data.num_views, sizes.image, sizes.image
    )
    scenes = jnp.arange(sizes.scenes, dtype=jnp.int32)
    make = functools.partial(stream.render_block, block)
    arguments = jnp.int32(0), jnp.uint32(0), scenes, jnp.float32(1)
    return make, arguments, 0.0


def _config(name: str) -> ml_collections.ConfigDict:
    return read_config_file(str(_CONFIGS / f"{name}.py"))


def _chip() -> Chip | None:
    """The published numbers of this device, where they are known."""
    kind = jax.devices()[0].device_kind.lower()
    known = (chip for name, chip in (GPUS | CHIPS).items() if name in kind)
    return next(known, None)


def _line(row: Mapping[str, Any]) -> str:
    told = row.get("left_out") or f"{row['seconds'] * 1e3:.2f} ms"
    return f"{row['begun']:6.0f} s  {row['group']:8}{row['name']:40}{told}"


def table(report: Report) -> str:
    """A line for each row, and the share of the rate of matmuls in the same run."""
    matmuls = (row for row in report["rows"] if row["name"] == "matmul")
    peak = next((row.get("flops_per_second") for row in matmuls), None)
    lines = []
    for row in report["rows"]:
        if "left_out" in row:
            lines.append([row["group"], row["name"], row["left_out"], *[""] * 5])
            continue
        rate = row["flops_per_second"]
        of_peak = f"{rate / peak:.0%}" if peak and rate and "bytes" not in row["name"] else ""
        foretold = row.get("sum_seconds")
        memory = row["temporary_bytes"]
        lines.append([
            row["group"], row["name"], f"{row['seconds'] * 1e3:.2f}",
            f"{foretold * 1e3:.2f}" if foretold else "", f"{rate / 1e12:.2f}" if rate else "",
            of_peak, f"{memory / 1e9:.2f}" if memory else "", f"{row['compile_seconds']:.0f}",
        ])  # fmt: skip
    header = ["", "", "ms", "ms foretold", "TFLOP/s", "of matmul", "temporaries, GB", "compiled, s"]
    return f"{report['hardware']}, jax {report['jax']}\n\n{common.markdown_table(header, lines)}"


def draw(report: Report) -> Figure:
    """Times of all rows, with what the compiler's program foretells beside them."""
    found = [row for row in report["rows"] if "seconds" in row][::-1]
    figure = Figure(figsize=(8, 0.3 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh([f"{r['group']}: {r['name']}" for r in found], [1e3 * r["seconds"] for r in found])
    foretold = [(i, 1e3 * r["sum_seconds"]) for i, r in enumerate(found) if "sum_seconds" in r]
    if foretold:
        places, values = zip(*foretold, strict=True)
        axes.plot(values, places, "k|", markersize=8, label="foretold")
        axes.legend(frameon=False)
    axes.set_xscale("log")
    axes.set_xlabel("ms")
    common.plain_axes(axes)
    axes.set_title(report["hardware"], fontsize=9)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.accelerator", __doc__, plot=True)
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="after which no row is begun (9)")
    add("--small", action="store_true", help="tiny sizes, to rehearse")
    return parser


if __name__ == "__main__":
    main()
