"""Names of weights in the published PyTorch programs, by architecture, and by its halves.

Those with decoupled halves are of SSD-LVSM's program, the others of LVSM's and Efficient-LVSM's.

A weight of a torch `Linear` is `[out, in]`; ours is `[in, out]`, with the layers stacked first.
Names are those of `state_dict` in the published checkpoints. In the tables each stands beside our
arrays, as `lvsm_jax.common.tree.named_leaves` calls them.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lvsm_jax.common.errors import UserError

Shape = tuple[int, ...]

# Weights outside of the layers.
_LVSM = {
    "image_tokenizer.1.weight": "input_tokenizer.kernel",
    "image_token_decoder.0.weight": "head_norm.scale",
    "target_pose_tokenizer.1.weight": "target_tokenizer.kernel",
    "image_token_decoder.1.weight": "head.kernel",
}
_LATENTS = "n_light_field_latent"
_SINGLE = {
    "EfficientLVSM": {
        "rgbp_tokenizer.1.weight": "input_tokenizer.kernel",
        "target_pose_tokenizer.1.weight": "target_tokenizer.kernel",
        "image_token_decoder.1.weight": "head.kernel",
    },
    "LVSMDecoderOnly": {**_LVSM, "transformer_input_layernorm.weight": "norm.scale"},
    "LVSMEncoderDecoder": {
        **_LVSM,
        _LATENTS: "latents",
        "transformer_input_layernorm_decoder.weight": "decoder_norm.scale",
    },
}

ARCHITECTURES = tuple(_SINGLE)

_HALVES = {
    "image_tokenizer.1.weight": "input_tokenizer.colors.kernel",
    "pose_tokenizer.1.weight": "input_tokenizer.rays.kernel",
    "decoder_norm_i.weight": "head_norm.colors.scale",
    "decoder_norm_p.weight": "head_norm.rays.scale",
    "decoder_linear.weight": "head.kernel",
}
_TARGET_RAYS, _HALVES_LATENTS = "target_pose_tokenizer.1.weight", "scene_latents"
_HALVES_SINGLE = {
    "LVSMDecoderOnly": {**_HALVES, "transformer_input_layernorm.weight": "norm.scale"},
    "LVSMEncoderDecoder": {
        **_HALVES,
        _HALVES_LATENTS: "latents",
        _TARGET_RAYS: "target_tokenizer.rays.kernel",
        "transformer_input_layernorm_decoder.weight": "decoder_norm.scale",
    },
}

# Weights of a layer; of two arrays of ours the rows stand one after the other there.
_ENCODER_LAYER = {
    "attn.to_qkv.weight": "self_attention.to_q.kernel self_attention.to_kv.kernel",
    "attn.fc.weight": "self_attention.out.kernel",
    "attn.q_norm.weight": "self_attention.q_norm.scale",
    "attn.k_norm.weight": "self_attention.k_norm.scale",
    "mlp.mlp.0.weight": "mlp.up.kernel",
    "mlp.mlp.2.weight": "mlp.down.kernel",
}
_LVSM_LAYER = {"norm1.weight": "norm1.scale", "norm2.weight": "norm2.scale", **_ENCODER_LAYER}
_DECODER_LAYER = {
    "self_attn.to_qkv.weight": "self_attention.to_q.kernel self_attention.to_kv.kernel",
    "self_attn.fc.weight": "self_attention.out.kernel",
    "self_attn.q_norm.weight": "self_attention.q_norm.scale",
    "self_attn.k_norm.weight": "self_attention.k_norm.scale",
    "cross_attn.to_q.weight": "cross_attention.to_q.kernel",
    "cross_attn.to_kv.weight": "cross_attention.to_kv.kernel",
    "cross_attn.fc.weight": "cross_attention.out.kernel",
    "cross_attn.q_norm.weight": "cross_attention.q_norm.scale",
    "cross_attn.k_norm.weight": "cross_attention.k_norm.scale",
    "mlp.mlp.0.weight": "mlp.up.kernel",
    "mlp.mlp.2.weight": "mlp.down.kernel",
}

_HALVES_LAYER = {
    "normI1.weight": "norm1.colors.scale",
    "normP1.weight": "norm1.rays.scale",
    "normI2.weight": "norm2.colors.scale",
    "normP2.weight": "norm2.rays.scale",
    "attn.to_qk.weight": "self_attention.to_q.kernel self_attention.to_kv.keys.kernel",
    "attn.to_vI.weight": "self_attention.to_kv.values.colors.kernel",
    "attn.to_vP.weight": "self_attention.to_kv.values.rays.kernel",
    "attn.fc_I.weight": "self_attention.out.colors.kernel",
    "attn.fc_P.weight": "self_attention.out.rays.kernel",
    "attn.q_norm.weight": "self_attention.q_norm.scale",
    "attn.k_norm.weight": "self_attention.k_norm.scale",
    "mlp_I.mlp.0.weight": "mlp.colors.up.kernel",
    "mlp_I.mlp.2.weight": "mlp.colors.down.kernel",
    "mlp_P.mlp.0.weight": "mlp.rays.up.kernel",
    "mlp_P.mlp.2.weight": "mlp.rays.down.kernel",
}
_FILM_LAYER = {
    "film_norm_P.weight": "film.norm_rays.scale",
    "film_generator.weight": "film.rays_to_colors.kernel",
    "film_generator.bias": "film.rays_to_colors.bias",
    "film_norm_I.weight": "film.norm_colors.scale",
    "film_generator_i2p.weight": "film.colors_to_rays.kernel",
    "film_generator_i2p.bias": "film.colors_to_rays.bias",
}
_HALVES_LAYERS = {
    "decoupled": _HALVES_LAYER,
    "decoupled_film": {**_HALVES_LAYER, **_FILM_LAYER},
}

# Stacks of layers, by which an architecture is recognised and its depth counted: the prefixes
# there and here, and the table of a layer.
_STACKS = {
    "EfficientLVSM": (
        ("input_self_attn_blocks", "encoder", _ENCODER_LAYER),
        ("self_cross_blocks", "decoder", _DECODER_LAYER),
    ),
    "LVSMDecoderOnly": (("transformer_blocks", "transformer", _LVSM_LAYER),),
    "LVSMEncoderDecoder": (
        ("transformer_encoder", "encoder", _LVSM_LAYER),
        ("transformer_decoder", "decoder", _LVSM_LAYER),
    ),
}


class Weight(NamedTuple):
    """A torch weight: some of our arrays, concatenated along its rows."""

    names: list[str]  # of our arrays
    layer: int | None = None  # of those stacked in our arrays; None where nothing is stacked
    transposed: bool = True  # whether a matrix is `[out, in]` there and `[in, out]` here


def is_published(architecture: str, halves: str) -> bool:
    """Whether there is a program with weights of such a model."""
    return architecture in (_SINGLE if halves == "joint" else _HALVES_SINGLE)


def halves_of(names: Iterable[str]) -> str:
    """Which of `models.halves.HALVES` a model with such names has."""
    parts = {part for name in names for part in name.split(".")}
    if "to_qk" not in parts:
        return "joint"
    return "decoupled_film" if "film_generator" in parts else "decoupled"


def is_unused(name: str, architecture: str, halves: str) -> bool:
    """Whether the program has this weight and never reads it."""
    return name == _TARGET_RAYS and architecture == "LVSMDecoderOnly" and halves != "joint"


def weights_of(architecture: str, num_layers: int, halves: str = "joint") -> dict[str, Weight]:
    """All weights of a published architecture, by their names in a state dict."""
    single = (_SINGLE if halves == "joint" else _HALVES_SINGLE)[architecture]
    weights = {
        name: Weight([ours], transposed=name not in (_LATENTS, _HALVES_LATENTS))
        for name, ours in single.items()
    }
    for there, here, table in _STACKS[architecture]:
        last_apart = table is _LVSM_LAYER  # the last layer stands by itself in ours
        table = _HALVES_LAYERS.get(halves, table)
        for layer in range(num_layers):
            stack, index = here, layer
            if last_apart:
                is_last = layer == num_layers - 1
                stack, index = (f"{here}.last", None) if is_last else (f"{here}.blocks", layer)
            for name, ours in table.items():
                arrays = [f"{stack}.{array}" for array in ours.split()]
                weights[f"{there}.{layer}.{name}"] = Weight(arrays, index)
    return weights


def architecture_and_layers(names: Iterable[str]) -> tuple[str, int]:
    """The architecture that has such names, and its `num_layers`: of its deeper stack.

    Raises UserError for no known architecture, or a number of layers that cannot be.
    """
    names = list(names)
    layers: dict[str, set[int]] = collections.defaultdict(set)
    for name in names:
        if match := re.match(r"(\w+)\.([0-9]{1,6})\.", name):
            layers[match[1]].add(int(match[2]))
    prefixes = {name: [stack[0] for stack in stacks] for name, stacks in _STACKS.items()}
    votes = {name: sum(len(layers[prefix]) for prefix in prefixes[name]) for name in prefixes}
    architecture = max(votes, key=votes.__getitem__)
    if not votes[architecture]:
        known = [f"{prefix}.0.*" for some in prefixes.values() for prefix in some]
        raise UserError(
            f"weights of no architecture known here, which have {', '.join(known)}; "
            f"these start with {sorted(names)[:5]}"
        )
    depth = 1 + max(max(layers[prefix], default=-1) for prefix in prefixes[architecture])
    if depth > len(names):  # a number gone wrong, not a model that lacks thousands of layers
        raise UserError(f"{architecture} of {depth} layers with {len(names)} weights")
    return architecture, depth


# Tokenizers and head: the dimension that is channels · patch², and the channels.
_PATCHES = {
    "rgbp_tokenizer.1.weight": (1, 9),
    "image_tokenizer.1.weight": (1, 9),
    "target_pose_tokenizer.1.weight": (1, 6),
    "image_token_decoder.1.weight": (0, 3),
}

_HALVES_PATCHES = {
    "image_tokenizer.1.weight": (1, 3),
    "pose_tokenizer.1.weight": (1, 6),
    _TARGET_RAYS: (1, 6),
    "decoder_linear.weight": (0, 3),
}

# Fields of a configuration that are inferred from weights, beside `num_layers`: by a vote of those
# of such names and number of dimensions, as the shape that is expected of them.
_RULES = {
    "width": (r".*(_tokenizer\.1|\.fc)\.weight", 2, "[width, ...]"),
    "head_dim": (r".*\.[qk]_norm\.weight", 1, "[head_dim], which divides the width"),
    "patch_size": (
        "|".join(map(re.escape, _PATCHES)),
        2,
        "9·p² columns (colours and rays), 6·p² columns (rays) or 3·p² rows (head), of a whole p",
    ),
    "mlp_ratio": (r".*\.mlp\.[02]\.weight", 2, "a multiple of the width"),
    "num_latents": (_LATENTS, 2, "[num_latents, width]"),
}

_HALVES_RULES = {
    "width": (r"(transformer_input_layernorm(_decoder)?|.*\.to_qk)\.weight", None, "[..., width]"),
    "head_dim": _RULES["head_dim"],
    "patch_size": (
        "|".join(map(re.escape, _HALVES_PATCHES)),
        2,
        "3·p² columns (colours), 6·p² columns (rays) or 3·p² rows (head), of a whole p",
    ),
    "mlp_ratio": (r".*\.mlp_[IP]\.mlp\.[02]\.weight", 2, "a multiple of half the width"),
    "num_latents": (_HALVES_LATENTS, 2, "[num_latents, width]"),
}

SIZES = ("num_layers", *_RULES)  # the other fields are variants of a model


class Sizes(NamedTuple):
    """Sizes inferred from weights."""

    fields: dict[str, int]  # of a configuration, without `num_layers`; unknown sizes are 1
    complaints: list[str]  # why a size is unknown, naming weights
    unknown: re.Pattern[str]  # matches names of weights whose shapes depend on unknown sizes


def _size(field: str, name: str, shape: Shape, width: int, halves: str) -> int | float:
    """A field as a weight says it, which should be a whole number of at least 1."""
    joint = halves == "joint"
    match field:
        case "width":
            return shape[0 if joint else -1]
        case "head_dim":
            return shape[0] if shape[0] and width % shape[0] == 0 else 0
        case "patch_size":
            axis, channels = (_PATCHES if joint else _HALVES_PATCHES)[name]
            return math.sqrt(shape[axis] / channels)
        case "mlp_ratio":
            hidden = shape[0 if name.endswith("0.weight") else 1]
            return hidden / (width if joint else width / 2)
    return shape[0]


def sizes_of(architecture: str, shapes: Mapping[str, Shape], halves: str = "joint") -> Sizes:
    """Sizes of an architecture, each by a majority vote of its weights."""
    fields: dict[str, int] = {}
    complaints, unknown = [], []
    rules = _RULES if halves == "joint" else _HALVES_RULES
    for field, (names, dimensions, expected) in rules.items():
        if field == "num_latents" and architecture != "LVSMEncoderDecoder":
            continue
        there = {name: shape for name, shape in shapes.items() if re.fullmatch(names, name)}
        sizes = [
            _size(field, name, shape, fields.get("width", 1), halves)
            for name, shape in there.items()
            if len(shape) == (dimensions or len(shape) or 1)
        ]
        votes = collections.Counter(int(size) for size in sizes if size >= 1 and size % 1 == 0)
        fields[field] = votes.most_common(1)[0][0] if votes else 1
        if not votes:
            found = ", ".join(f"{name} {shape}" for name, shape in list(there.items())[:4])
            found = found or f"{names} (missing)"
            complaints.append(f"no {field} fits {found}: expected {expected}")
            # Every shape depends on the width.
            unknown.append(".*" if field == "width" else names)
    return Sizes(fields, complaints, re.compile("|".join(unknown) or r"(?!)"))
