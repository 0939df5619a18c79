"""What a model costs for one scene: parameters, multiply-accumulates and bytes."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.table import format_table
from lvsm_jax.cost import memory
from lvsm_jax.cost.flops import Macs, forward_macs, stages, training_flops
from lvsm_jax.models.architectures import architecture_of
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.training.train_state import TrainingConfig

# Parts of a model that are `num_layers` layers of one size.
_STACKS = ("encoder", "decoder", "transformer")


def count_costs(
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
        UserError: numbers that the model cannot take.
    """
    size = {"height": height, "width": width}
    for name, value in {"views": views, "targets": targets, **size}.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected at least 1")
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
    """The tables that a person reads, from what `count_costs` returned."""
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
    rows = []
    for name, part in parameters["parts"].items():
        count, layers = part["parameters"], part["layers"]
        each = (f"{layers}", f"{count // layers:,}") if layers > 1 else ("", "")
        rows.append((name, *each, f"{count:,}", f"{count / 1e6:.2f}"))
    total = parameters["total"]
    rows.append(("total", "", "", f"{total:,}", f"{total / 1e6:.2f}"))
    return format_table(("parameters", "layers", "a layer", "all", "M"), rows)


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
    header = ("multiply-accumulates of a forward pass, G", "linear", "attention", "both", "share")
    rows = [(name, *row, share) for name, row, share in zip(counts, numbers, shares, strict=True)]
    once, step = _in_units([flops["forward"], flops["training_step"]], 1e9, flops["forward"])
    return f"{format_table(header, rows)}\nFLOPs: {once} G forward, {step} G in a training step"


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
    lines = [format_table(("bytes", "MB"), zip(names, numbers, strict=True))]
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
