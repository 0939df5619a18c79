"""Speed of the model: forward pass, training step, and attention alone.

    python -m benchmarks.model --output=model.json                     # 12 layers, 256 px
    python -m benchmarks.model --layers=3 --width=128 --head-dim=32 --size=64 --batch=16

FLOPs are counted from the sizes (linear layers and attention; the backward pass counts twice the
forward, what is recomputed counts nothing) and, beside it, by XLA, which counts the body of a loop
over layers once. The share of peak is against the largest matmul rate measured on this machine in
the same run and dtype. The weights are random. Medians of --repeats runs.
"""

import argparse
import functools
import json
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from input_pipeline.batch import Batch, Views
from lvsm_jax import Cameras, EfficientLVSM, EfficientLVSMConfig
from lvsm_jax.attention import attention
from lvsm_jax.files import write_text
from lvsm_jax.flops import forward_macs, training_flops
from lvsm_jax.losses import LossConfig
from lvsm_jax.optimizer import OptimizerConfig
from lvsm_jax.train_state import TrainingConfig, new_state, train_step


def main() -> None:
    """Prints a table and writes JSON."""
    options = _parser().parse_args()
    measurements = [
        ("matmul", lambda: matmul_peak(options)),
        *(
            (f"attention {name}", functools.partial(attention_rate, options, name))
            for name in _implementations(options)
        ),
        ("forward", lambda: forward_rate(options)),
    ]
    if not options.no_training:
        measurements.append(("training step", lambda: training_rate(options)))
    rows, peak = [], math.nan
    for name, measure in tqdm(measurements, desc="measuring"):
        row = measure()
        peak = row["flops_per_second"] if name == "matmul" else peak
        rows.append({"name": name, **row, "share_of_peak": row["flops_per_second"] / peak})
    report = {
        "hardware": f"{jax.devices()[0].device_kind} × {jax.device_count()}, {platform.machine()}",
        "jax": jax.__version__,
        "options": {k: v for k, v in vars(options).items() if k != "output"},
        "rows": rows,
    }
    print(_table(report))
    if options.output:
        write_text(options.output, json.dumps(report, indent=2) + "\n")


def measured(function: Callable[..., Any], args: tuple, flops: int, repeats: int) -> dict[str, Any]:
    """Time of a compiled call whose result takes the place of nothing: no donation."""
    compiled = jax.jit(function).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    memory = compiled.memory_analysis()
    return {
        "seconds": seconds,
        "seconds_min_max": [min(times), max(times)],
        "flops": flops,
        "flops_by_xla": (compiled.cost_analysis() or {}).get("flops"),
        "flops_per_second": flops / seconds,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def matmul_peak(options: argparse.Namespace) -> dict[str, Any]:
    """The best rate of square matmuls."""
    rates = []
    for size in options.matmul_sizes:
        a = jax.random.normal(jax.random.key(0), (size, size), options.dtype)
        rates.append(measured(jnp.matmul, (a, a), 2 * size**3, max(5, options.repeats)))
    return max(rates, key=lambda rate: rate["flops_per_second"])


def attention_rate(options: argparse.Namespace, implementation: str) -> dict[str, Any]:
    """The model's cross-attention: all targets of a scene against all its inputs."""
    tokens = _tokens(options)
    heads = options.width // options.head_dim
    t, s = options.targets * tokens, options.views * tokens
    q, k, v = (
        jax.random.normal(
            jax.random.key(i), (options.batch, n, heads, options.head_dim), options.dtype
        )
        for i, n in enumerate((t, s, s))
    )
    function = functools.partial(attention, implementation=implementation)
    return measured(function, (q, k, v), 4 * options.batch * t * s * options.width, options.repeats)


def forward_rate(options: argparse.Namespace) -> dict[str, Any]:
    """Rendering the targets from the images."""
    model = EfficientLVSM(_config(options), rngs=nnx.Rngs(0))
    batch = _random_batch(options)

    def render(model: EfficientLVSM, batch: Batch) -> jax.Array:
        images = batch.inputs.images.astype(jnp.float32) / 255
        return model(images, batch.inputs.cameras, batch.targets.cameras)

    return measured(
        render, (model, batch), _forward(options).flops * options.batch, options.repeats
    )


def training_rate(options: argparse.Namespace) -> dict[str, Any]:
    """A whole optimizer step."""
    config = TrainingConfig(_config(options), OptimizerConfig(), LossConfig(), num_steps=1000)
    step = functools.partial(train_step, config)
    args = new_state(config, 0), _random_batch(options)
    flops = training_flops(_forward(options)) * options.batch
    return measured(step, args, flops, options.repeats)


def _implementations(options: argparse.Namespace) -> list[str]:
    kernels = {"cpu": ["blocked"], "gpu": ["cudnn"], "tpu": ["splash"]}[jax.default_backend()]
    return ["xla", *(k for k in kernels if k != "cudnn" or options.dtype != "float32")]


def _config(options: argparse.Namespace) -> EfficientLVSMConfig:
    return EfficientLVSMConfig(
        num_layers=options.layers,
        width=options.width,
        head_dim=options.head_dim,
        patch_size=options.patch,
        dtype=options.dtype,
        attention=options.attention,
        remat=options.remat,
    )


def _tokens(options: argparse.Namespace) -> int:
    return (options.size // options.patch) ** 2


def _forward(options: argparse.Namespace) -> Any:
    return forward_macs(
        _config(options),
        views=options.views,
        targets=options.targets,
        height=options.size,
        width=options.size,
    )


def _random_batch(options: argparse.Namespace) -> Batch:
    rng = np.random.default_rng(0)
    b, size = options.batch, options.size

    def views(count: int) -> Views:
        c2w = np.tile(np.eye(4, dtype=np.float32), (b, count, 1, 1))
        c2w[..., :3, 3] = rng.uniform(-1, 1, (b, count, 3))
        cameras = Cameras(c2w, np.full((b, count, 4), size / 2, np.float32))
        images = rng.integers(0, 256, (b, count, size, size, 3), np.uint8)
        return Views(images, cameras, np.zeros((b, count), np.int32))

    rows = np.arange(b, dtype=np.int32)
    return jax.device_put(
        Batch(views(options.views), views(options.targets), rows, rows >= 0, rows)
    )


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['hardware']}, jax {report['jax']}",
        " " * 24
        + "".join(
            f"{title:>10}" for title in ("ms", "TFLOP", "XLA loop", "TFLOP/s", "of peak", "temp MB")
        ),
    ]
    for row in report["rows"]:
        xla, memory = row["flops_by_xla"], row["temporary_bytes"]
        lines.append(
            f"{row['name']:24}{row['seconds'] * 1e3:10.1f}{row['flops'] / 1e12:10.4f}"
            f"{(xla or math.nan) / 1e12:10.4f}{row['flops_per_second'] / 1e12:10.3f}"
            f"{row['share_of_peak']:10.1%}{(memory or math.nan) / 1e6:10.0f}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default, meaning in (
        ("layers", 12, "layers of each stream"),
        ("width", 768, "channels of a token"),
        ("head-dim", 64, "channels of a head"),
        ("patch", 8, "side of a patch"),
        ("size", 256, "height and width in pixels"),
        ("views", 2, "input views"),
        ("targets", 6, "target views"),
        ("batch", 1, "scenes"),
        ("repeats", 3, "runs of which the median counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="auto", help="implementation in the model (auto)")
    parser.add_argument("--remat", default="none", help="remat policy of the training step (none)")
    parser.add_argument("--no-training", action="store_true", help="skip the training step")
    parser.add_argument(
        "--matmul-sizes", type=int, nargs="+", default=[1024, 2048], help="sides of the matmuls"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    main()
