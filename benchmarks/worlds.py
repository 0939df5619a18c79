"""What the stream of worlds costs beside the training step on them.

    python -m benchmarks.worlds --config=configs/worlds_64.py --batch=16
    python -m benchmarks.worlds --config=configs/worlds_256.py --batch=8 --count

A block of worlds is rendered once for as many steps as `worlds.steps_per_world` says; a batch is
drawn from it for each; then comes a whole optimizer step. Each is measured alone, on one device,
median of --repeats, with the most inputs that a step may have. FLOPs of rendering are counted from
the traced program, at most: an operation on an element is one, data that moves none, and a scene
has all the solids that it has room for. Loops over a part of the solids of several worlds at once
(worlds.solids_at_once, worlds.scenes_at_once) are counted too low.
Those of a step are counted from the sizes. With --count nothing is measured or compiled.
"""

import argparse
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.extend import core

from benchmarks import common
from benchmarks.common import Report
from lvsm_jax.common.command_line import add_config_option, parse_with_config, program
from lvsm_jax.common.config import DataConfig, section
from lvsm_jax.cost.flops import forward_macs, training_flops
from lvsm_jax.training.train_state import TrainingConfig, new_state, train_step
from lvsm_jax.worlds import stream
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.sampling import Draw

# What moves or names values without computing any.
_FREE = [
    "broadcast_in_dim",
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "copy",
    "iota",
    "slice",
    "dynamic_slice",
    "split",
    "gather",
    "dynamic_update_slice",
    "concatenate",
    "pad",
    "convert_element_type",
    "bitcast_convert_type",
    "rev",
    "stop_gradient",
    "random_wrap",
    "random_unwrap",
    "random_seed",
]


@program
def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    options, config = parse_with_config(_parser(), arguments)
    common.report_benchmark(options, functools.partial(measure, config), table)


def measure(config: ml_collections.ConfigDict, options: argparse.Namespace) -> Report:
    """A row each for rendering, drawing and training; only counted with --count."""
    data, worlds = section(config, "data", DataConfig), section(config, "worlds", WorldsConfig)
    training = dataclasses.replace(TrainingConfig.of(config), grad_accumulation=1)
    size, inputs = data.image_height, max(data.possible_inputs)
    block = stream.Block(worlds, data.num_views, size, size)
    scenes = np.arange(options.batch, dtype=np.int32)
    draw = Draw.of(data, worlds.input_weights, inputs)

    def render(scenes: jax.Array) -> stream.Worlds:
        return stream.render_block(block, 0, jnp.uint32(0), scenes, jnp.float32(1))

    def take(made: stream.Worlds, scenes: jax.Array) -> Any:
        return stream.draw_samples(draw, made, scenes, jnp.uint32(0), jnp.int32(0))

    macs = forward_macs(
        training.model, views=inputs, targets=data.num_targets, height=size, width=size
    )
    groups = -(-options.batch // worlds.scenes_at_once)
    flops = {
        # The loop over groups of worlds walks along an array with room for one more than there are.
        "render": count_flops(render, scenes) * groups // (groups + 1),
        "draw": count_flops(take, jax.eval_shape(render, scenes), scenes),
        "step": options.batch * training_flops(macs),
    }
    rows = {name: {"flops": count} for name, count in flops.items()}
    if not options.count:
        made = jax.jit(render)(scenes)
        batch = jax.jit(take)(made, scenes)
        step = functools.partial(train_step, training)
        calls = {
            "render": (render, (scenes,)),
            "draw": (take, (made, scenes)),
            "step": (step, (new_state(training, 0), batch)),
        }
        for name, call in calls.items():
            rows[name] |= common.measure_call(*call, flops[name], options.repeats)
    about = {"inputs": inputs, "targets": data.num_targets, "views": data.num_views, "size": size}
    about["steps_per_world"] = worlds.steps_per_world
    return {**common.describe_run(options), **about, "config": config.to_dict(), "rows": rows}


def count_flops(function: Any, *args: Any) -> int:
    """Operations on elements in a function of such arguments; loops count by their turns.

    It is what they are at most: of branches the dearest counts, and a loop whose end depends on
    data turns once for each slice of the array that it walks along, as over all solids that a scene
    has room for. One that walks along none turns twice, as where rays are followed into mirrors.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    if name == "while":
        body = params["body_jaxpr"].jaxpr
        return _turns(body) * _count(body)
    inner = [getattr(p, "jaxpr", p) for p in params.values()]
    inner = [p for p in inner if isinstance(p, core.Jaxpr)]
    if inner and not name.startswith(("reduce", "scatter", "sort", "arg", "cum")):
        return params.get("length", 1) * sum(map(_count, inner))
    if name in _FREE:
        return 0
    outputs = sum(math.prod(out.aval.shape) for out in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * outputs * math.prod(shape[axis] for axis in contracted)
    if name.startswith(("reduce", "arg", "cum")):
        return sum(math.prod(x.aval.shape) for x in equation.invars)
    return outputs


def _turns(body: core.Jaxpr) -> int:
    slices = [x for x in body.eqns if x.primitive.name == "dynamic_slice"]
    walked = (x.invars[0].aval.shape[0] // x.params["slice_sizes"][0] for x in slices)
    return max(walked, default=2)


def table(report: Report) -> str:
    """What rendering and drawing take of a step; rendering is shared by its steps."""
    rows, shared = report["rows"], {"render": report["steps_per_world"]}
    measured = "seconds" in rows["step"]
    header = ["a batch", "GFLOP", "of the step"] + (["ms", "of the step"] if measured else [])
    names = {"render": "rendered", "draw": "drawn", "step": "trained on"}
    lines = []
    for name, row in rows.items():
        values = ["flops", "seconds"] if measured else ["flops"]
        line = [names[name]]
        for value, unit in zip(values, (1e9, 1e-3), strict=False):
            mine = row[value] / shared.get(name, 1)
            line += [f"{mine / unit:,.1f}", f"{mine / rows['step'][value]:.1%}"]
        lines.append(line)
    text = common.markdown_table(header, lines)
    about = (
        "{batch} worlds of {views} views of {size}×{size} px, {inputs} inputs, {targets} targets"
    )
    about = about.format(batch=report["options"]["batch"], **report)
    return f"{text}\n\n{about}, {report['steps_per_world']} steps a world, {report['hardware']}"


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.worlds", __doc__)
    add_config_option(parser)
    add = functools.partial(parser.add_argument, metavar="N", type=int)
    add("--batch", default=8, help="worlds (8)")
    add("--repeats", default=5, help="calls of which the median counts (5)")
    parser.add_argument("--count", action="store_true", help="count FLOPs, and measure nothing")
    return parser


if __name__ == "__main__":
    main()
