"""What a model costs for one scene: parameters, multiply-accumulates and bytes."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict
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
_WITHOUT_CACHE = {
    "LVSMDecoderOnly": (
        "No KV cache: the inputs' tokens attend to the target in every layer, so that nothing but "
        "their tokens before the first layer (what encode returns) serves another target."
    ),
    "GSLRM": (
        "No KV cache: targets are rendered from the Gaussians (what encode returns), and pass "
        "through no layer."
    ),
    "LVSMEncoderDecoder": (
        "No KV cache: the latents attend to the target in every layer of the decoder, so that only "
        "the latents before it (what encode returns, the same for any number of inputs) serve "
        "another target."
    ),
}


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

    `views` are the input views; all views have one height and width, in pixels. Without `training`
    the bytes of the training state are left out. Raises UserError for numbers that the model cannot
    take.
    """
    size = {"height": height, "width": width}
    scene = {"views": views, "targets": targets, **size}
    for name, value in scene.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected at least 1")
    by_stage = stages(model, **scene)
    forward = sum(by_stage.values(), Macs())
    parts = memory.parameters(model)

    def one_more(kind: str) -> dict[str, int]:
        more = scene | {kind: scene[kind] + 1}
        return asdict(forward_macs(model, **more) - forward)

    return {
        "architecture": architecture_of(model),
        "model": asdict(model),
        **scene,
        "tokens_per_view": height * width // model.patch_size**2,
        "parameters": {
            "total": sum(parts.values()),
            "parts": {
                name: {"parameters": count, "layers": model.num_layers if name in _STACKS else 1}
                for name, count in parts.items()
            },
        },
        "macs": {
            "stages": {name: asdict(macs) for name, macs in by_stage.items()},
            "forward": asdict(forward),
            "one_more_input_view": one_more("views"),
            "one_more_target_view": one_more("targets"),
        },
        "flops": {"forward": forward.flops, "training_step": training_flops(forward)},
        "bytes": {
            "weights": 4 * sum(parts.values()),
            "training_state": training and memory.training_state_bytes(training),
            "kv_cache_per_input_view": memory.kv_cache_bytes(model, **size),
            "rasterizer": memory.rasterizer_bytes(model, views=views, **size),
            "encoded": asdict(memory.encoded_bytes(model, views=views, **size)),
            "activations": asdict(memory.activation_bytes(model, **scene)),
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
    parameters = _parameters_table(description["parameters"])
    macs = _macs_table(description["macs"], description["flops"])
    return "\n\n".join((f"{title}\n{scene}", parameters, macs, _bytes_table(description)))


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
    header = ("multiply-accumulates of a forward pass, G", "linear", "attention", "both", "share")
    rows = []
    for name, count in counts.items():
        numbers = _in_units([count.linear, count.attention, count.total], 1e9, forward.total)
        rows.append((name, *numbers, f"{count.total / forward.total:.1%}"))
    once, step = _in_units([flops["forward"], flops["training_step"]], 1e9, flops["forward"])
    return f"{format_table(header, rows)}\nFLOPs: {once} G forward, {step} G in a training step"


def _bytes_table(description: Mapping[str, Any]) -> str:
    sizes, views, targets = description["bytes"], description["views"], description["targets"]
    cache, encoded, kept = sizes["kv_cache_per_input_view"], sizes["encoded"], sizes["activations"]
    rows: dict[str, int] = {"weights in float32": sizes["weights"]}
    if state := sizes["training_state"]:
        held = " + ".join(name.replace("_", " ") for name, size in state.items() if size)
        rows[f"training state: {held}"] = sum(state.values())
    if cache is not None:
        rows["KV cache, each input view"] = cache
    if rasterizer := sizes["rasterizer"]:
        rows["rasteriser, a target view at a time"] = rasterizer
    backward = "kept for the backward pass"
    rows |= {
        f"what encode returns, {views} input views": encoded["scene"],
        "what encode returns, each input view": encoded["input_view"],
        f"{backward}, {views} input and {targets} target views": kept["scene"],
        f"{backward}, one more input view": kept["input_view"],
        f"{backward}, one more target view": kept["target_view"],
    }
    numbers = _in_units(rows.values(), 1e6, max(rows.values()))
    lines = [format_table(("bytes", "MB"), zip(rows, numbers, strict=True))]
    if cache is None:
        lines.append(textwrap.fill(_WITHOUT_CACHE[description["architecture"]], 100))
    kernel = sizes["activations_attention"]
    kernel = "a fused kernel" if kernel == "splash" else f"the kernel {kernel!r}"
    lines.append(f"Kept with model.remat={description['model']['remat']!r} and {kernel}.")
    return "\n".join(lines)


def _in_units(counts: Iterable[int], unit: float, largest: int) -> list[str]:
    """Numbers of a unit, with decimals for small models."""
    decimals = 1 if largest >= 100 * unit else 3
    return [f"{count / unit:,.{decimals}f}" for count in counts]
