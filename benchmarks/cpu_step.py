"""The training step on a CPU beside a bare JAX sketch of the same mathematics.

    python -m benchmarks.cpu_step --layers=4 --size=256 --batch=1            # 5 minutes
    python -m benchmarks.cpu_step --layers=4 --size=256 --batch=1 --no-sketch
    python -m benchmarks.cpu_step --layers=3 --width=128 --head-dim=32 --size=64 --batch=16
    python -m benchmarks.cpu_step --remat none dots full --output=cpu_step.json

The sketch has the same layers, losses and optimizer, and nothing else: its layers are a Python
loop, attention is three lines, gradients are JAX's own. Both compute in float32 on one device, and
take turns. Told is the median of --repeats calls in processor seconds of all threads, which other
programs on the machine disturb little, and the rate as a share of the best square matmul of the
same run; FLOPs are counted from the sizes, a backward pass as twice the forward pass. Beside it
stands what attention's forward pass takes over its two matmuls alone. First it is checked that
both programs give the same loss and the same length of the gradient.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from benchmarks import common
from benchmarks.common import Report
from lvsm_jax.batch import Batch
from lvsm_jax.common.command_line import program
from lvsm_jax.cost.flops import forward_macs, training_flops
from lvsm_jax.models.blocked_attention import (
    batched_product,
    block_scores,
    block_sizes,
    blocked_attention,
    map_blocks,
)
from lvsm_jax.models.cameras import pose_conditioning
from lvsm_jax.models.efficient_lvsm import EfficientLVSM, EfficientLVSMConfig
from lvsm_jax.models.layers import REMAT_POLICIES, patchify, unpatchify
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig, new_state, to_unit, train_step

Tokens = Float[Array, "b v n d"]


@program
def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    common.report_benchmark(_parser().parse_args(arguments), measure, table)


def measure(options: argparse.Namespace) -> Report:
    """A row for the sketch, and one for our step with each remat policy."""
    model = EfficientLVSMConfig(
        num_layers=options.layers, width=options.width, head_dim=options.head_dim
    )
    sizes = {"views": options.views, "targets": options.targets, "size": options.size}
    batch = common.random_batch(options.batch, **sizes)
    side = {"height": options.size, "width": options.size}
    counts = {"views": options.views, "targets": options.targets}
    flops = options.batch * training_flops(forward_macs(model, **counts, **side))
    config = training(model)
    state = jax.jit(functools.partial(new_state, config, 0))()
    programs: dict[str, tuple[Callable, Any]] = {}
    if not options.no_sketch:
        programs["sketch"] = sketch(config, state.model)
    for remat in options.remat:
        own = dataclasses.replace(config, model=dataclasses.replace(model, remat=remat))
        start = jax.jit(functools.partial(new_state, own, 0))()
        programs[f"ours, {remat}"] = (functools.partial(train_step, own), start)
    report = {
        **common.describe_run(options),
        "matmul": _matmul_rate(),
        "flops": flops,
        "attention_over_matmuls": _attention_over_matmuls(model, options),
        "rows": [],
    }
    compiled, found = {}, {}
    for name, (step, start) in programs.items():
        compiled[name] = jax.jit(step).lower(start, batch).compile()
        found[name] = compiled[name](start, batch)  # warms up
    if "sketch" in found:
        check_same(found)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.repeats):
        for name, (_, start) in programs.items():
            seconds[name].append(_processor_seconds(compiled[name], start, batch)[1])
    beside = statistics.median(seconds["sketch"]) if "sketch" in seconds else None
    for name, times in seconds.items():
        median = statistics.median(times)
        memory = compiled[name].memory_analysis()
        report["rows"].append({
            "name": name,
            "processor_seconds": median,
            "over_sketch": median / beside if beside else None,
            "share_of_matmul": flops / median / report["matmul"],
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        })  # fmt: skip
    return report


def training(model: EfficientLVSMConfig) -> TrainingConfig:
    """MSE, and AdamW that neither clips nor decays nor warms up."""
    optimizer = OptimizerConfig(
        schedule="constant", warmup_steps=0, clip_norm=1e6, weight_decay=0.0
    )
    return TrainingConfig(model, optimizer=optimizer, loss=LossConfig(), num_steps=1000)


def sketch(config: TrainingConfig, model: EfficientLVSM) -> tuple[Callable, Any]:
    """A step `(state, batch) → (state, metrics)` of the sketch, and the state it starts from.

    Its weights are the model's, a module for each layer, of which it reads nothing but the arrays.
    """
    rate, sizes = config.optimizer.learning_rate, config.model
    adamw = optax.adamw(rate, config.optimizer.beta1, config.optimizer.beta2, weight_decay=0.0)
    stacks = model.encoder, model.decoder
    layers = [jax.tree.map(lambda x, i=i: x[i], stacks) for i in range(sizes.num_layers)]
    weights = layers, (model.input_tokenizer, model.target_tokenizer, model.head)

    def loss(weights: Any, batch: Batch) -> Array:
        return jnp.square(_render(sizes, *weights, batch) - to_unit(batch.targets.images)).mean()

    def step(state: tuple, batch: Batch) -> tuple:
        weights, opt_state = state
        value, grads = jax.value_and_grad(loss)(weights, batch)
        updates, opt_state = adamw.update(grads, opt_state, weights)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads)}
        return (optax.apply_updates(weights, updates), opt_state), metrics

    return step, (weights, adamw.init(weights))


def check_same(found: Mapping[str, tuple]) -> None:
    """Raises RuntimeError unless all steps had the sketch's loss and length of the gradient."""
    for name, (_, metrics) in found.items():
        for key, expected in found["sketch"][1].items():
            if not np.isclose(metrics[key], expected, rtol=1e-3):
                raise RuntimeError(f"{name} has {key} {metrics[key]}, the sketch {expected}")


def _render(sizes: EfficientLVSMConfig, layers: list, ends: tuple, batch: Batch) -> Array:
    """The targets' images."""
    to_inputs, to_targets, head = ends
    height, width = batch.inputs.images.shape[2:4]
    rays = [
        pose_conditioning("plucker", views.cameras, height, width)
        for views in (batch.inputs, batch.targets)
    ]
    pixels = jnp.concatenate([to_unit(batch.inputs.images) * 2 - 1, rays[0]], axis=-1)
    views = _linear(to_inputs, patchify(pixels, sizes.patch_size))
    targets = _linear(to_targets, patchify(rays[1], sizes.patch_size))
    for encoder, decoder in layers:
        normed = _norm(views)
        views = views + _attention(encoder.self_attention, normed, normed)
        views = views + _mlp(encoder.mlp, _norm(views))
        normed = _norm(targets)
        targets = targets + _attention(decoder.self_attention, normed, normed)
        b, t, n, d = targets.shape
        flat = _norm(targets).reshape(b, 1, t * n, d)
        read = _attention(decoder.cross_attention, flat, _norm(views).reshape(b, 1, -1, d))
        targets = targets + read.reshape(targets.shape)
        targets = targets + _mlp(decoder.mlp, _norm(targets))
    return unpatchify(
        jax.nn.sigmoid(_linear(head, _norm(targets))), sizes.patch_size, height, width
    )


def _attention(weights: Any, tokens: Tokens, attended: Tokens) -> Tokens:
    channels = weights.head_dim
    k, v = jnp.split(_linear(weights.to_kv, attended), 2, axis=-1)
    q, k, v = (
        x.reshape(*x.shape[:-1], -1, channels) for x in (_linear(weights.to_q, tokens), k, v)
    )
    q, k = _scaled(q, weights.q_norm), _scaled(k, weights.k_norm)
    scores = jnp.einsum("bvtmc,bvsmc->bvmts", q, k) / math.sqrt(channels)
    read = jnp.einsum("bvmts,bvsmc->bvtmc", jax.nn.softmax(scores), v)
    return _linear(weights.out, read.reshape(tokens.shape))


def _scaled(x: Array, norm: Any) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * norm.scale[...]


def _norm(x: Tokens) -> Tokens:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def _mlp(weights: Any, x: Tokens) -> Tokens:
    return _linear(weights.down, jax.nn.gelu(_linear(weights.up, x), approximate=False))


def _linear(weights: Any, x: Array) -> Array:
    return (x.reshape(-1, x.shape[-1]) @ weights.kernel[...]).reshape(*x.shape[:-1], -1)


def _attention_over_matmuls(model: EfficientLVSMConfig, options: argparse.Namespace) -> float:
    """Processor time of the cross-attention's forward pass over that of its two matmuls alone.

    The matmuls take the same blocks, in place of a softmax between them there is nothing.
    """
    tokens, c = (options.size // model.patch_size) ** 2, model.head_dim
    pairs, t, s = options.batch * model.width // c, options.targets * tokens, options.views * tokens
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(options.batch, n, model.width // c, c) for n in (t, s, s)]
    q, k, v = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    some, queries = block_sizes(pairs, t, s, block_scores(q))

    def one_block(xs: tuple) -> Array:
        q, k, v = xs
        return map_blocks(lambda q: batched_product(batched_product(q, k), v), q)

    def matmuls(q: Array, k: Array, v: Array) -> Array:
        q = q.reshape(pairs // some, some, t // queries, queries, c).swapaxes(1, 2)
        xs = q, k.reshape(-1, some, c, s), v.reshape(-1, some, s, c)
        return map_blocks(one_block, xs)

    times: list[list[float]] = [[], []]
    compiled = [jax.jit(f).lower(q, k, v).compile() for f in (blocked_attention, matmuls)]
    for _ in range(options.repeats + 1):  # the first warms up
        for function, own in zip(compiled, times, strict=True):
            own.append(_processor_seconds(function, q, k, v)[1])
    ours, bare = (statistics.median(own[1:]) for own in times)
    return ours / bare


def _processor_seconds(call: Callable, *arguments: Any) -> tuple[Any, float]:
    """The result of a call, and the processor time until it is ready."""
    begun = time.process_time()
    result = jax.block_until_ready(call(*arguments))
    return result, time.process_time() - begun


def _matmul_rate(size: int = 2048) -> float:
    """FLOP in a processor second, of square matmuls; the best of five."""
    a = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    times = [_processor_seconds(matmul, a, a)[1] for _ in range(6)]
    return 2 * size**3 / min(times[1:])  # the first compiles


def table(report: Report) -> str:
    """A line for each program."""
    lines = [
        [
            row["name"],
            f"{row['processor_seconds']:.2f}",
            f"{row['over_sketch']:.2f}" if row["over_sketch"] else "–",
            f"{row['share_of_matmul']:.0%}",
            f"{(row['temporary_bytes'] or 0) / 1e9:.2f}",
        ]
        for row in report["rows"]
    ]
    header = ["", "processor s", "over the sketch", "of matmul", "temporaries, GB"]
    return (
        f"{report['hardware']}, jax {report['jax']}\n\n{common.markdown_table(header, lines)}\n\n"
        "forward pass of attention over its two matmuls alone: "
        f"{report['attention_over_matmuls']:.2f}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.cpu_step", __doc__)
    add = parser.add_argument
    add("--layers", type=int, default=4)
    add("--width", type=int, default=768)
    add("--head-dim", type=int, default=64)
    add("--size", type=int, default=256, help="side of the images in pixels")
    add("--batch", type=int, default=1, help="scenes")
    add("--views", type=int, default=2, help="input views")
    add("--targets", type=int, default=3, help="target views")
    add("--remat", nargs="+", choices=REMAT_POLICIES, default=["none", "dots"])
    add("--repeats", type=int, default=3)
    add("--no-sketch", action="store_true", help="measure our step alone, which takes less memory")
    return parser


if __name__ == "__main__":
    main()
