"""Says what a model costs: parameters, multiply-accumulates and bytes.

    python -m lvsm_jax.programs.describe --config=configs/re10k_256.py
    python -m lvsm_jax.programs.describe --config=configs/re10k_256.py --views=6 --targets=7
    python -m lvsm_jax.programs.describe --config=configs/base.py:LVSMDecoderOnly \
        --config.model.num_layers=6
    python -m lvsm_jax.programs.describe runs/quickstart/export --height=128 --json=costs.json

The model is that of a config file, whose fields can be set with --config.SECTION.FIELD=VALUE as for
train.py, or that of an export. All is counted from sizes and shapes, for one scene: no weights are
made or read, and any machine gives the same numbers.

G is 1e9, M and MB are 1e6. A multiply-accumulate is two FLOPs, and the backward pass counts twice
the forward pass; published tables tend to call multiply-accumulates FLOPS and to leave out
attention. Kept for the backward pass is what training holds of a scene between the two passes,
under model.remat and model.attention; for the latter's default it is what fused kernels keep where
the number of tokens suits them (multiples of 128), else what the plain one keeps.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.common.config import DataConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text
from lvsm_jax.cost import memory
from lvsm_jax.cost.flops import Macs, forward_macs, stages, training_flops
from lvsm_jax.models.architectures import architecture_of
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.training.train_state import TrainingConfig

# Parts of a model that are `num_layers` layers of one size.
_STACKS = ("encoder", "decoder", "transformer")


def describe(
    model: ModelConfig,
    training: TrainingConfig | None = None,
    *,
    views: int,
    targets: int,
    height: int,
    width: int,
) -> dict[str, Any]:
    """What a model costs for one scene, as JSON values; counts are integers.

    Args:
        model: its sizes.
        training: for the bytes of the training state; None leaves them out.
        views: input views.
        targets: target views.
        height: of all views, in pixels.
        width: of all views, in pixels.

    Raises:
        ValueError: numbers that the model cannot take.
    """
    for name, value in {
        "views": views,
        "targets": targets,
        "height": height,
        "width": width,
    }.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected at least 1")
    size = {"height": height, "width": width}
    by_stage = stages(model, views=views, targets=targets, **size)
    forward = sum(by_stage.values(), Macs())
    parts = memory.parameters(model)
    return {
        "architecture": architecture_of(model),
        "model": dataclasses.asdict(model),
        "views": views,
        "targets": targets,
        **size,
        "tokens_per_view": height * width // model.patch_size**2,
        "parameters": {
            "total": sum(parts.values()),
            "parts": {
                name: {"parameters": count, "layers": model.num_layers if name in _STACKS else 1}
                for name, count in parts.items()
            },
        },
        "macs": {
            "stages": {name: dataclasses.asdict(macs) for name, macs in by_stage.items()},
            "forward": dataclasses.asdict(forward),
            "one_more_input_view": dataclasses.asdict(
                forward_macs(model, views=views + 1, targets=targets, **size) - forward
            ),
            "one_more_target_view": dataclasses.asdict(
                forward_macs(model, views=views, targets=targets + 1, **size) - forward
            ),
        },
        "flops": {"forward": forward.flops, "training_step": training_flops(forward)},
        "bytes": {
            "weights": 4 * sum(parts.values()),
            "training_state": training and memory.training_state_bytes(training),
            "kv_cache_per_input_view": memory.kv_cache_bytes(model, **size),
            "encoded": dataclasses.asdict(memory.encoded_bytes(model, views=views, **size)),
            "activations": dataclasses.asdict(
                memory.activation_bytes(model, views=views, targets=targets, **size)
            ),
            "activations_attention": memory.countable(model, **size).attention,
        },
    }


def text(description: Mapping[str, Any]) -> str:
    """The tables that a person reads, from what `describe` returned."""
    title = (
        "{architecture}: {num_layers} layers of width {width}, heads of {head_dim}, patches of "
        "{patch_size} px; {dtype}, remat {remat}"
    ).format(architecture=description["architecture"], **description["model"])
    scene = (
        "One scene: {views} input views and {targets} target views of {height}×{width} px, "
        "{tokens_per_view:,} tokens a view"
    ).format(**description)
    return "\n\n".join(
        (
            f"{title}\n{scene}",
            _parameters_table(description["parameters"]),
            _macs_table(description["macs"], description["flops"]),
            _bytes_table(description),
        )
    )


def _parameters_table(parameters: Mapping[str, Any]) -> str:
    rows = [("parameters", "layers", "a layer", "all", "M")]
    for name, part in parameters["parts"].items():
        count, layers = part["parameters"], part["layers"]
        each = (f"{layers}", f"{count // layers:,}") if layers > 1 else ("", "")
        rows.append((name, *each, f"{count:,}", f"{count / 1e6:.2f}"))
    total = parameters["total"]
    rows.append(("total", "", "", f"{total:,}", f"{total / 1e6:.2f}"))
    return _table(rows)


def _macs_table(macs: Mapping[str, Any], flops: Mapping[str, int]) -> str:
    forward = Macs(**macs["forward"])
    counts = {name: Macs(**stage) for name, stage in macs["stages"].items()} | {
        "total": forward,
        "one more input view adds": Macs(**macs["one_more_input_view"]),
        "one more target view adds": Macs(**macs["one_more_target_view"]),
    }
    numbers = [
        _in_units([count.linear, count.attention, count.total], 1e9, forward.total)
        for count in counts.values()
    ]
    shares = [f"{count.total / forward.total:.1%}" for count in counts.values()]
    rows = [
        ("multiply-accumulates of a forward pass, G", "linear", "attention", "both", "share"),
        *((name, *row, share) for name, row, share in zip(counts, numbers, shares, strict=True)),
    ]
    once, step = _in_units([flops["forward"], flops["training_step"]], 1e9, flops["forward"])
    return f"{_table(rows)}\nFLOPs: {once} G forward, {step} G in a training step"


def _bytes_table(description: Mapping[str, Any]) -> str:
    sizes, views, targets = description["bytes"], description["views"], description["targets"]
    rows: list[tuple[str, int]] = [("weights in float32", sizes["weights"])]
    if sizes["training_state"]:
        state = sizes["training_state"]
        held = " + ".join(name.replace("_", " ") for name, size in state.items() if size)
        rows.append((f"training state: {held}", sum(state.values())))
    cache, encoded, kept = sizes["kv_cache_per_input_view"], sizes["encoded"], sizes["activations"]
    if cache is not None:
        rows.append(("KV cache, each input view", cache))
    rows += [
        (f"what encode returns, {views} input views", encoded["scene"]),
        ("what encode returns, each input view", encoded["input_view"]),
        (f"kept for the backward pass, {views} input and {targets} target views", kept["scene"]),
        ("kept for the backward pass, one more input view", kept["input_view"]),
        ("kept for the backward pass, one more target view", kept["target_view"]),
    ]
    names, numbers = zip(*rows, strict=True)
    numbers = _in_units(numbers, 1e6, max(numbers))
    lines = [_table([("bytes", "MB"), *zip(names, numbers, strict=True)])]
    if cache is None:
        lines.append(textwrap.fill(_WITHOUT_CACHE[description["architecture"]], 100))
    kernel = sizes["activations_attention"]
    kernel = "a fused kernel" if kernel == "splash" else f"the kernel {kernel!r}"
    lines.append(f"Kept with model.remat={description['model']['remat']!r} and {kernel}.")
    return "\n".join(lines)


_WITHOUT_CACHE = {
    "LVSMDecoderOnly": (
        "No KV cache: the inputs' tokens attend to the target in every layer, so that nothing but "
        "their tokens before the first layer (what encode returns) serves another target."
    ),
    "LVSMEncoderDecoder": (
        "No KV cache: the latents attend to the target in every layer of the decoder, so that only "
        "the latents before it (what encode returns, the same for any number of inputs) serve "
        "another target."
    ),
}


def _in_units(counts: Iterable[int], unit: float, largest: int) -> list[str]:
    """Numbers of a unit, with decimals for small models."""
    decimals = 1 if largest >= 100 * unit else 3
    return [f"{count / unit:,.{decimals}f}" for count in counts]


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns aligned: words to the left, numbers to the right; a line under the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and prints."""
    given, config_fields = _parser().parse_known_args(arguments)
    unknown = [
        field for field in config_fields if not field.startswith(("--config.", "--noconfig."))
    ]
    if unknown:
        sys.exit(f"error: unknown arguments {unknown}; config fields are --config.SECTION.FIELD=…")
    if (given.config is None) == (given.export is None):
        sys.exit("error: give either --config=FILE or an EXPORT directory")
    if given.export and config_fields:
        sys.exit(f"error: an export's config is fixed, unlike {config_fields[0]}")
    if given.json not in (None, "-") and not pathlib.Path(given.json).absolute().parent.is_dir():
        sys.exit(f"error: there is no directory for --json={given.json}")
    try:
        if given.config:
            config = read_config_file(given.config, config_fields)
            training = TrainingConfig.of(config)
            model = training.model
            data = dataclasses.asdict(section(config, "data", DataConfig))
        else:
            model, data = _of_export(given.export)
            training = None
        description = describe(model, training, **_scene(given, data))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    as_json = json.dumps(description, indent=2)
    if given.json == "-":
        print(as_json)
        return
    print(text(description))
    if given.json:
        write_text(given.json, as_json + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.programs.describe",
        usage="%(prog)s (--config=FILE [--config.SECTION.FIELD=VALUE ...] | EXPORT) [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("export", nargs="?", metavar="EXPORT", help="directory of an export")
    parser.add_argument("--config", metavar="FILE", help="config file, see configs/")
    parser.add_argument("--views", type=int, help="input views (the config's data.num_inputs)")
    parser.add_argument("--targets", type=int, help="target views (the config's data.num_targets)")
    parser.add_argument("--height", type=int, help="pixels (the config's data.image_height)")
    parser.add_argument("--width", type=int, help="pixels (the height)")
    parser.add_argument(
        "--json", metavar="FILE", help="also write the numbers to a file; - prints them alone"
    )
    return parser


def _of_export(path: str) -> tuple[ModelConfig, dict[str, Any]]:
    """An export's model, and the data that it was trained on as far as it is recorded."""
    from lvsm_jax.weights import exports  # imports Orbax, which takes as long as all else

    recorded = exports.describe(path).get("config") or {}
    default = dataclasses.asdict(DataConfig(path=""))
    return exports.model_config(path), default | recorded.get("data", {})


def _scene(given: argparse.Namespace, data: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of views and size: those given, else those of the config's section `data`."""
    height = data["image_height"] if given.height is None else given.height
    if given.width is None and not data["square_crop"]:
        raise UserError("with data.square_crop=False the frames decide the width: give --width")
    most_inputs = max(data["input_counts"], default=data["num_inputs"])
    return {
        "views": most_inputs if given.views is None else given.views,
        "targets": data["num_targets"] if given.targets is None else given.targets,
        "height": height,
        "width": height if given.width is None else given.width,
    }


if __name__ == "__main__":
    main()
