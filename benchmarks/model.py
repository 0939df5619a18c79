"""Speed of one model: forward pass, training step, and attention alone.

    python -m benchmarks.model --output=model.json                # Efficient-LVSM as published
    python -m benchmarks.model --architecture=LVSMDecoderOnly --no-training
    python -m benchmarks.model --layers=3 --width=128 --head-dim=32 --size=64 --batch=16

FLOPs are counted from the sizes (linear layers and attention; the backward pass counts twice the
forward, what is recomputed counts nothing) and, beside it, by XLA, which counts the body of a loop
over layers once. The share of peak is against the largest matmul rate measured on this machine in
the same run and dtype. The weights are random. Medians of --repeats runs. `benchmarks.models`
compares the models over the number of views.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
from flax import nnx
from tqdm import tqdm

from benchmarks.common import hardware, matmul_peak, measured, random_batch, render
from lvsm_jax.batch import Batch
from lvsm_jax.common.files import write_text
from lvsm_jax.cost.flops import Macs, forward_macs, training_flops
from lvsm_jax.models.architectures import CONFIGS, config_class, new_model
from lvsm_jax.models.attention import attention
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig, new_state, train_step


def main() -> None:
    """Prints a table and writes JSON."""
    options = _parser().parse_args()
    measurements = [
        (
            "matmul",
            lambda: matmul_peak(options.dtype, options.matmul_sizes, max(5, options.repeats)),
        ),
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
        "hardware": hardware(),
        "jax": jax.__version__,
        "options": {k: v for k, v in vars(options).items() if k != "output"},
        "rows": rows,
    }
    print(_table(report))
    if options.output:
        write_text(options.output, json.dumps(report, indent=2) + "\n")


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
    args = new_model(_config(options), nnx.Rngs(0)), _random_batch(options)
    return measured(render, args, _forward(options).flops * options.batch, options.repeats)


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


def _config(options: argparse.Namespace) -> ModelConfig:
    published = config_class(options.architecture)()
    return dataclasses.replace(
        published,
        num_layers=options.layers or published.num_layers,
        width=options.width,
        head_dim=options.head_dim,
        patch_size=options.patch,
        dtype=options.dtype,
        attention=options.attention,
        remat=options.remat,
    )


def _tokens(options: argparse.Namespace) -> int:
    return (options.size // options.patch) ** 2


def _forward(options: argparse.Namespace) -> Macs:
    return forward_macs(
        _config(options),
        views=options.views,
        targets=options.targets,
        height=options.size,
        width=options.size,
    )


def _random_batch(options: argparse.Namespace) -> Batch:
    return random_batch(
        options.batch, views=options.views, targets=options.targets, size=options.size
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
    parser.add_argument(
        "--architecture", default="EfficientLVSM", choices=list(CONFIGS), help="(EfficientLVSM)"
    )
    for name, default, meaning in (
        ("layers", 0, "layers, see the architecture; 0: as published"),
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
