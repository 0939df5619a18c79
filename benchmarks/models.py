"""The four models side by side: latency, memory and FLOPs over the input views.

    python -m benchmarks.models --dtype=bfloat16 --output=models.json --plot=models.png  # a GPU
    python -m benchmarks.models --size=128 --output=models.json --plot=models.png  # CPU: 15 minutes
    python -m benchmarks.models --read=models.json --plot=models.png   # table and plot once more
    python -m benchmarks.models --measure attention render train --architectures EfficientLVSM \
        --views 2 --targets 6 --layers=3 --width=128 --head-dim=32 --size=64 --batch=16

Weights are random, of the published sizes, unless --layers-fraction takes the same part of each
model's layers. Latent tokens keep their published number for each token of an input. Measured is
the compiled forward pass, from images and cameras to pixels: the median of up to --repeats calls,
or one call that takes 20 s. The models take turns in each cell. The share of peak is of the largest
matmul rate in the same run and dtype; GS-LRM's rasterising takes time and is no FLOP. Memory is
XLA's plan for temporary arrays and the output, beside weights and inputs. A cell that would take
longer than --max-seconds, at the best rate of its model so far, is skipped, and the table says so.

--measure adds optimizer steps (train) and the cross-attention of all targets to all inputs with
each kernel of this machine (attention). FLOPs are counted from the sizes (linear layers and
attention; a backward pass counts twice the forward pass, what is recomputed counts nothing) and,
beside it, by XLA, which counts the body of a loop over layers once.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import COLORS, NAMES, Report, markdown_table, measure_call, random_batch
from lvsm_jax.common.command_line import program
from lvsm_jax.common.errors import UserError
from lvsm_jax.cost.flops import Macs, forward_macs, training_flops
from lvsm_jax.models.architectures import CONFIGS, config_class, new_model
from lvsm_jax.models.attention import attention
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig, new_state, train_step

_ENOUGH_SECONDS = 20.0
_PUBLISHED_SIZE = 256
_FIRST = "EfficientLVSM"
_TITLE_WIDTH = 100  # characters
_KERNELS = {"cpu": ["xla", "blocked"], "gpu": ["xla", "cudnn"], "tpu": ["xla", "splash"]}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured once."""

    architecture: str
    views: int
    targets: int
    targets_at_once: int  # of the LVSM models; Efficient-LVSM has all at once
    what: str = "render"  # or "train", or "attention" and a kernel


@program
def main(arguments: list[str]) -> None:
    """Prints tables; writes JSON and a plot."""
    common.report_benchmark(_parser().parse_args(arguments), measure, tables, draw)


def measure(options: argparse.Namespace) -> Report:
    """All cells; the JSON is written anew after each."""
    configs = {name: sized_config(name, options) for name in options.architectures}
    cells = plan(options)
    counts = {cell: _count(configs[cell.architecture], cell, options.size) for cell in cells}
    models = {name: new_model(config, nnx.Rngs(0)) for name, config in configs.items()}
    peak = common.matmul_peak(options.dtype, options.matmul_sizes, options.clock)
    report = {
        **common.describe_run(options),
        "models": {name: _about(model) for name, model in models.items()},
        "matmul": peak,
        "published": published(options),
        "cells": [],
    }
    # The bar counts work, to predict the time left: the last cells are the longest.
    total = sum(macs.flops for macs in counts.values())
    bar = "{percentage:3.0f} % |{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=total, bar_format=bar) as progress:
        for cell in cells:
            progress.set_postfix_str(f"{cell.architecture} {cell.views} → {cell.targets}")
            rate = _best_rate(report, cell.architecture)
            row = measure_cell(cell, models[cell.architecture], counts[cell], rate, options)
            if "seconds" in row:
                row["share_of_peak"] = row["flops_per_second"] / peak["flops_per_second"]
            report["cells"].append({**dataclasses.asdict(cell), **row})
            report["exponents"] = exponents(_grid(report))
            common.write_report(options.output, report)
            progress.update(counts[cell].flops)
    return report


def sized_config(architecture: str, options: argparse.Namespace) -> ModelConfig:
    """The published configuration with the command line's changes."""
    published = config_class(architecture)()
    layers = max(1, round(published.num_layers * options.layers_fraction))
    sizes = {
        "num_layers": options.layers or layers,
        "width": options.width or published.width,
        "head_dim": options.head_dim,
        "patch_size": options.patch,
        "dtype": options.dtype,
        "attention": options.attention,
        "remat": options.remat,
    }
    if hasattr(published, "num_latents"):
        share = (options.size / _PUBLISHED_SIZE) ** 2
        sizes["num_latents"] = max(1, round(published.num_latents * share))
    return dataclasses.replace(published, **sizes)


def plan(options: argparse.Namespace) -> list[Cell]:
    """Cells from few views and targets to many, the models next to each other."""
    grid = [
        Cell(architecture, views, targets, options.targets_at_once, what)
        for views, targets in itertools.product(sorted(options.views), sorted(options.targets))
        for what in _measurements(options)
        for architecture in options.architectures
    ]
    views, targets = options.at_once
    compared = [
        Cell(architecture, views, targets, at_once)
        for architecture in options.architectures
        for at_once in (1, 0)
        if targets and hasattr(config_class(architecture)(), "targets_at_once")
    ]
    return list(dict.fromkeys([*grid, *compared]))


def _measurements(options: argparse.Namespace) -> list[str]:
    """--measure, with a measurement for each attention kernel that this machine has."""
    unfit = {"cudnn"} if options.dtype == "float32" else set()
    kernels = [kernel for kernel in _KERNELS[jax.default_backend()] if kernel not in unfit]
    named = {"attention": [f"attention {kernel}" for kernel in kernels]}
    return [name for what in options.measure for name in named.get(what, [what])]


def published(options: argparse.Namespace) -> list[dict[str, Any]]:
    """FLOPs of the published models, at 256 pixels, for the views and targets asked for."""
    rows = []
    sizes = sorted(options.targets), sorted(options.views), options.architectures
    for targets, views, name in itertools.product(*sizes):
        row = {"architecture": name, "views": views, "targets": targets}
        cell = Cell(**row, targets_at_once=0)
        rows.append(row | {"flops": _count(config_class(name)(), cell, _PUBLISHED_SIZE).flops})
    return rows


def measure_cell(
    cell: Cell, model: ViewSynthesisModel, macs: Macs, rate: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Time and memory of a cell, or why it was skipped; `rate` in FLOP/s predicts its time."""
    flops = options.batch * (training_flops(macs) if cell.what == "train" else macs.flops)
    row = {"flops": flops, "linear_macs": macs.linear, "attention_macs": macs.attention}
    if options.max_seconds and flops / rate > options.max_seconds:
        return {**row, "skipped": f"would take about {flops / rate:.0f} s"}
    call, args = _call(cell, model, options)
    try:
        how = {"enough_seconds": _ENOUGH_SECONDS, "clock": options.clock}
        row |= measure_call(call, args, flops, options.repeats, **how)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row["skipped"] = "out of memory"
    return row


def _call(
    cell: Cell, model: ViewSynthesisModel, options: argparse.Namespace
) -> tuple[Callable[..., Any], tuple]:
    """The function that a cell measures, and its arguments."""
    what, _, kernel = cell.what.partition(" ")
    config = model.config
    if hasattr(config, "targets_at_once"):
        config = dataclasses.replace(config, targets_at_once=cell.targets_at_once)
    if what == "attention":
        tokens = (options.size // config.patch_size) ** 2
        heads = (config.width // config.head_dim, config.head_dim)
        qkv = tuple(
            jax.random.normal(jax.random.key(i), (options.batch, n * tokens, *heads), config.dtype)
            for i, n in enumerate((cell.targets, cell.views, cell.views))
        )
        return functools.partial(attention, implementation=kernel), qkv
    batch = random_batch(options.batch, views=cell.views, targets=cell.targets, size=options.size)
    if what == "train":
        training = TrainingConfig(config, OptimizerConfig(), LossConfig(), num_steps=1000)
        return functools.partial(train_step, training), (new_state(training, 0), batch)
    model = jax.tree.map(lambda leaf: leaf, model)  # the same weights, computed otherwise
    model.config = config
    return common.render, (model, batch)


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The power of the input views with which the cost grows between the two largest measured.

    It is 1 where the cost doubles with the views, 2 where it becomes fourfold. All `rows` are of
    one `targets_at_once`.
    """
    result = []
    for architecture, targets in dict.fromkeys((r["architecture"], r["targets"]) for r in rows):
        cells = sorted(_of(_measured(rows), architecture, targets), key=lambda row: row["views"])
        if len(cells) > 1:
            few, many = cells[-2:]
            row = {"architecture": architecture, "targets": targets}
            row["views"] = [few["views"], many["views"]]
            for name in ("seconds", "flops"):
                row[name] = math.log(many[name] / few[name], many["views"] / few["views"])
            result.append(row)
    return result


def tables(report: Report) -> str:
    """All that was measured, in words and Markdown tables."""
    matmul = f"{report['matmul']['flops_per_second'] / 1e12:.3f} TFLOP/s"
    parts = [f"{_title(report)}; jax {report['jax']}; matmul {matmul}"]
    if grid := _grid(report):
        unit, factor = _time_unit(grid)
        parts.append(_over_views(grid, "seconds", unit, lambda row: _time(row, factor)))
        if report["exponents"]:
            parts.append(_growth(report["exponents"]))
        if _reduced(report["options"]):
            rows, size = report["published"], f"{_PUBLISHED_SIZE}×{_PUBLISHED_SIZE} px"
            table = _over_views(rows, "flops", "TFLOP", lambda row: f"{row['flops'] / 1e12:.3g}")
            parts.append(f"Counted, of the published models at {size}:\n\n{table}")
    parts.append(_details(report["cells"]))
    return "\n\n".join(parts)


def draw(report: Report) -> Figure:
    """Latency and memory over the input views, a line a model, a column a number of targets."""
    rows = _measured(_grid(report))
    if not rows:
        raise UserError("every cell was skipped, so there is nothing to draw")
    targets = sorted({row["targets"] for row in rows})
    views = sorted({row["views"] for row in rows})
    slopes = {(row["architecture"], row["targets"]): row["seconds"] for row in report["exponents"]}
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(textwrap.fill(_title(report), _TITLE_WIDTH), fontsize=12)
    panels = figure.subplots(2, len(targets), sharex=True, sharey="row", squeeze=False)
    panels[0, 0].set_ylabel("latency, s")
    panels[1, 0].set_ylabel("memory beside weights, MB")
    for (latency, memory), count in zip(panels.T, targets, strict=True):
        latency.set_title(f"{count} target{'s' if count > 1 else ''}", fontsize=11)
        memory.set_xlabel("input views")
        for name in report["models"]:
            if not (cells := _of(rows, name, count)):
                continue
            slope = slopes.get((name, count))
            growth = "" if slope is None else f"\n~ views$^{{{slope:.2f}}}$"
            x, style = [row["views"] for row in cells], {"color": COLORS[name], "linewidth": 2}
            label = NAMES[name].removeprefix("LVSM ")
            latency.plot(x, [row["seconds"] for row in cells], "o-", label=label + growth, **style)
            memory.plot(x, [_working(row) / 1e6 for row in cells], "o-", label=label, **style)
        for axes in (latency, memory):
            common.log_axes(axes, views)
            common.label_lines(axes)
    return figure


def _title(report: Report) -> str:
    options = report["options"]
    # Two of the models have one stack of layers, the others two.
    counts = {name: model["config"]["num_layers"] for name, model in report["models"].items()}
    layers = " / ".join(
        f"{count}" if name in ("LVSMDecoderOnly", "GSLRM") else f"{count} + {count}"
        for name, count in counts.items()
    )
    size = f"{options['size']}×{options['size']} px"
    batch = f", batch {options['batch']}" if options.get("batch", 1) > 1 else ""
    reduced = ", ".join(_reduced(options))
    note = f" (not the published {reduced})" if reduced else ""
    clock = ", processor seconds" if options.get("clock") == "processor" else ""
    return f"{report['hardware']}, {size}{batch}, {options['dtype']}, {layers} layers{note}{clock}"


def _reduced(options: dict[str, Any]) -> list[str]:
    """Which of the sizes differ from the published."""
    differs = {
        "size": options["size"] != _PUBLISHED_SIZE,
        "layers": options["layers_fraction"] != 1 or options.get("layers"),
        "width": options["width"],
    }
    return [name for name, other in differs.items() if other]


def _over_views(
    rows: Sequence[dict[str, Any]], key: str, unit: str, text: Callable[[dict[str, Any]], str]
) -> str:
    """A column a number of views; in brackets how many times Efficient-LVSM's."""
    views = sorted({row["views"] for row in rows})
    names = dict.fromkeys(row["architecture"] for row in rows)
    lines = []
    for targets, name in itertools.product(sorted({row["targets"] for row in rows}), names):
        cells = dict.fromkeys(views)
        for row in _of(rows, name, targets):
            ratio = _ratio(rows, row, key)
            times = f" ({ratio:.1f}×)" if ratio and name != _FIRST else ""
            cells[row["views"]] = text(row) + times
        lines.append([targets, NAMES[name], *cells.values()])
    header = ["targets", "model", *(f"{count} inputs, {unit}" for count in views)]
    return markdown_table(header, lines, text=2)


def _details(cells: Sequence[dict[str, Any]]) -> str:
    """A row for each cell."""
    unit, factor = _time_unit(cells)
    header = [
        "measured", "model", "targets", "at once", "inputs", unit, "× Efficient", "TFLOP",
        "XLA's, loops once", "in attention", "TFLOP/s", "of peak", "memory, MB", "with weights",
    ]  # fmt: skip
    lines = []
    for row in sorted(cells, key=lambda row: (_what(row), row["targets"], row["views"])):
        alike = [other for other in cells if _what(other) == _what(row)]
        ratio, xla = _ratio(alike, row, "seconds"), row.get("flops_by_xla")
        share = row["attention_macs"] / (row["attention_macs"] + row["linear_macs"])
        line = [
            _what(row), NAMES[row["architecture"]], row["targets"],
            None if row["architecture"] == _FIRST else row["targets_at_once"] or "all",
            row["views"], "skipped" if "skipped" in row else _time(row, factor),
            ratio and f"{ratio:.2f}", f"{row['flops'] / 1e12:.4g}", xla and f"{xla / 1e12:.4g}",
            f"{share:.0%}",
        ]  # fmt: skip
        if "skipped" not in row:
            working = _working(row)
            line += [
                f"{row['flops_per_second'] / 1e12:.3g}", f"{row['share_of_peak']:.0%}",
                _megabytes(working), _megabytes(working + row["argument_bytes"]),
            ]  # fmt: skip
        lines.append(line + [None] * (len(header) - len(line)))
    return markdown_table(header, lines, text=2)


def _growth(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: row["targets"]):
        few, many = row["views"]
        powers = f"{row['seconds']:.2f}", f"{row['flops']:.2f}"
        lines.append([row["targets"], NAMES[row["architecture"]], f"{few} → {many}", *powers])
    header = ["targets", "model", "inputs", "time ~ views^", "FLOPs ~ views^"]
    return markdown_table(header, lines, text=2)


def _what(row: dict[str, Any]) -> str:
    return row.get("what", "render")  # older reports have renders alone


def _grid(report: Report) -> list[dict[str, Any]]:
    """The cells of the main table."""
    options = report["options"]
    renders = [row for row in report["cells"] if _what(row) == "render"]
    alike = [row for row in renders if row["targets_at_once"] == options["targets_at_once"]]
    names = ("views", "targets")
    return [row for row in alike if all(row[name] in options[name] for name in names)]


def _measured(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "skipped" not in row]


def _of(rows: Iterable[dict[str, Any]], architecture: str, targets: int) -> list[dict[str, Any]]:
    return [r for r in rows if (r["architecture"], r["targets"]) == (architecture, targets)]


def _ratio(rows: Iterable[dict[str, Any]], row: dict[str, Any], key: str) -> float | None:
    """Its cost over Efficient-LVSM's with as many views."""
    first = [r for r in _of(rows, _FIRST, row["targets"]) if r["views"] == row["views"]]
    if not first or "skipped" in first[0] or "skipped" in row:
        return None
    return row[key] / first[0][key]


def _working(row: dict[str, Any]) -> int:
    return row["temporary_bytes"] + row["output_bytes"]


def _time_unit(rows: Sequence[dict[str, Any]]) -> tuple[str, float]:
    """Milliseconds where all took less than a second."""
    slowest = max((row["seconds"] for row in _measured(rows)), default=0)
    return ("s", 1) if slowest >= 1 else ("ms", 1e3)


def _time(row: dict[str, Any], factor: float) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    value = row["seconds"] * factor
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.2g}"


def _count(config: ModelConfig, cell: Cell, size: int) -> Macs:
    """Multiply-accumulates of one scene's forward pass, or of its cross-attention alone."""
    if cell.what.startswith("attention"):
        tokens = (size // config.patch_size) ** 2
        return Macs(attention=2 * cell.views * cell.targets * tokens**2 * config.width)
    return forward_macs(config, views=cell.views, targets=cell.targets, height=size, width=size)


def _about(model: ViewSynthesisModel) -> dict[str, Any]:
    leaves = jax.tree.leaves(model)
    return {
        "config": dataclasses.asdict(model.config),
        "parameters": sum(leaf.size for leaf in leaves),
        "weight_bytes": sum(leaf.nbytes for leaf in leaves),
    }


def _best_rate(report: Report, architecture: str) -> float:
    """FLOPs a second that the model has reached, or of matmuls where it has not run yet."""
    rows = _measured(report["cells"])
    rates = [row["flops_per_second"] for row in rows if row["architecture"] == architecture]
    return max(rates, default=report["matmul"]["flops_per_second"])


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.models", __doc__, plot=True)
    add = parser.add_argument
    add("--architectures", nargs="+", default=list(CONFIGS), choices=list(CONFIGS), metavar="NAME",
        help=f"of {', '.join(CONFIGS)} (all)")  # fmt: skip
    add("--measure", nargs="+", default=["render"], choices=["render", "train", "attention"],
        metavar="WHAT", help="render, train or attention, or several of them (render)")  # fmt: skip
    add("--views", type=int, nargs="+", default=[2, 4, 8, 16], help="input views (2 4 8 16)")
    add("--targets", type=int, nargs="+", default=[1, 8], help="target views (1 8)")
    add("--batch", type=int, default=1, help="scenes (1)")
    add("--size", type=int, default=_PUBLISHED_SIZE, help="height and width in pixels (256)")
    add("--layers", type=int, default=0, help="of each stack (0: as --layers-fraction says)")
    add("--layers-fraction", type=float, default=1.0, help="of the published layers (1)")
    add("--width", type=int, default=0, help="channels of a token (0: the published 768)")
    add("--head-dim", type=int, default=64, help="channels of a head (64)")
    add("--patch", type=int, default=8, help="side of a patch in pixels (8)")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="(float32)")
    add("--attention", default="auto", help="attention kernel of the models (auto)")
    add("--remat", default="none", help="remat policy of training steps (none)")
    add("--targets-at-once", type=int, default=1,
        help="targets that LVSM models compute together, 0 for all (1, their default)")  # fmt: skip
    add("--at-once", type=int, nargs=2, default=[8, 8], metavar=("VIEWS", "TARGETS"),
        help="where one target at once is compared with all; 0 0 for nowhere (8 8)")  # fmt: skip
    add("--repeats", type=int, default=5, help="counted calls at most (5)")
    add("--max-seconds", type=float, help="of a call that is not skipped (any)")
    add("--clock", default="wall", choices=list(common.CLOCKS),
        help="wall, or processor: seconds of all cores, beside other programs (wall)")  # fmt: skip
    add("--matmul-sizes", type=int, nargs="+", default=[1024, 2048, 4096],
        help="sides of the matmuls whose best rate is the peak (1024 2048 4096)")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
