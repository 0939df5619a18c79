"""Names of weights in the published PyTorch programs, by architecture.

A weight of a torch `Linear` is `[out, in]`; ours is `[in, out]`, with the layers stacked first.
Names are those of `state_dict` in the published checkpoints.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from lvsm_jax.common.errors import UserError

Shape = tuple[int, ...]

# Frozen networks of the losses, which training checkpoints contain beside the model.
HELPERS = ("loss_computer", "repa_encoder", "repa_projector")

# Fields of a configuration that are inferred from weights; the others are variants of a model.
SIZES = ("num_layers", "width", "head_dim", "patch_size", "mlp_ratio", "num_latents")

# Prefixes of the layers of each architecture, by which it is recognised and its depth counted.
_STREAMS: dict[str, tuple[str, ...]] = {
    "EfficientLVSM": ("input_self_attn_blocks", "self_cross_blocks"),
    "LVSMDecoderOnly": ("transformer_blocks",),
    "LVSMEncoderDecoder": ("transformer_encoder", "transformer_decoder"),
}

# Tokenizers and head: the dimension that is channels · patch².
_PATCHES = {
    "rgbp_tokenizer.1.weight": (1, 9),
    "image_tokenizer.1.weight": (1, 9),
    "target_pose_tokenizer.1.weight": (1, 6),
    "image_token_decoder.1.weight": (0, 3),
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """A torch weight: some of our arrays, concatenated along its rows.

    Attributes:
        torch_name: its name in a state dict.
        names: our arrays, as `lvsm_jax.common.tree.named_leaves` calls them.
        layer: which of the layers stacked in those arrays; None where nothing is stacked.
        transposed: whether a matrix is `[out, in]` there and `[in, out]` here.
    """

    torch_name: str
    names: tuple[str, ...]
    layer: int | None = None
    transposed: bool = True


def split_name(name: str) -> tuple[str, bool]:
    """A weight's name without `module.` and `_orig_mod.`; and whether it is a helper network's."""
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
    return name, name.startswith(tuple(f"{helper}." for helper in HELPERS))


def architecture_and_layers(names: Iterable[str]) -> tuple[str, int]:
    """The architecture that has such names, and its `num_layers`: of its deeper stream.

    Raises:
        ValueError: no architecture that is known, or a number of layers that cannot be.
    """
    names = list(names)
    layers: dict[str, set[int]] = collections.defaultdict(set)
    for name in names:
        if match := re.match(r"(\w+)\.([0-9]{1,6})\.", name):
            layers[match[1]].add(int(match[2]))
    votes = {
        architecture: sum(len(layers[stream]) for stream in streams)
        for architecture, streams in _STREAMS.items()
    }
    architecture = max(votes, key=votes.__getitem__)
    if not votes[architecture]:
        known = [f"{stream}.0.*" for streams in _STREAMS.values() for stream in streams]
        raise UserError(
            f"weights of no architecture known here, which have {', '.join(known)}; "
            f"these start with {sorted(names)[:5]}"
        )
    depth = 1 + max(max(layers[stream], default=-1) for stream in _STREAMS[architecture])
    if depth > len(names):  # a number gone wrong, not a model that lacks thousands of layers
        raise UserError(f"{architecture} of {depth} layers with {len(names)} weights")
    return architecture, depth


class Sizes(NamedTuple):
    """Sizes inferred from weights.

    Attributes:
        fields: of a configuration, without `num_layers`; unknown sizes have a placeholder.
        complaints: why a size is unknown, naming weights.
        unknown: matches the names of weights whose shapes depend on unknown sizes.
    """

    fields: dict[str, int]
    complaints: list[str]
    unknown: re.Pattern[str]


# The weights from which each size is inferred, and the shapes that they should have.
_INFERRED_FROM = {
    "width": (r".*(_tokenizer\.1|\.fc)\.weight", "expected [width, ...]"),
    "head_dim": (r".*\.[qk]_norm\.weight", "expected [head_dim], which divides the width"),
    "patch_size": (
        "|".join(map(re.escape, _PATCHES)),
        "expected, of a whole patch size p, 9·p² columns (colours and rays), 6·p² columns (rays), "
        "3·p² rows (head)",
    ),
    "mlp_ratio": (r".*\.mlp\.[02]\.weight", "expected a multiple of the width"),
    "num_latents": ("n_light_field_latent", "expected [num_latents, width]"),
}


def sizes_of(architecture: str, shapes: Mapping[str, Shape]) -> Sizes:
    """Sizes of an architecture, each by a majority vote of its weights."""
    complaints, unknown = [], []

    def vote(field: str, size: Callable[[str, Shape], int], otherwise: int) -> int:
        names, expected = _INFERRED_FROM[field]
        there = {name: shape for name, shape in shapes.items() if re.fullmatch(names, name)}
        votes = [size(name, shape) for name, shape in there.items()]
        counts = collections.Counter(vote for vote in votes if vote >= 1)
        if counts:
            return counts.most_common(1)[0][0]
        found = ", ".join(f"{name} {shape}" for name, shape in list(there.items())[:4])
        complaints.append(f"no {field} fits {found or names + ' (missing)'}: {expected}")
        unknown.append(names)
        return otherwise

    def first(dimensions: int) -> Callable[[str, Shape], int]:
        return lambda _, shape: shape[0] if len(shape) == dimensions else 0

    def divisor(_: str, shape: Shape) -> int:
        return shape[0] if len(shape) == 1 and shape[0] and width % shape[0] == 0 else 0

    def patch(name: str, shape: Shape) -> int:
        axis, channels = _PATCHES[name]
        return _whole_root(shape[axis] / channels) if len(shape) == 2 else 0

    def ratio(name: str, shape: Shape) -> int:
        axis = 0 if name.endswith("0.weight") else 1
        return _whole(shape[axis] / width) if len(shape) == 2 else 0

    width = vote("width", first(2), 1)
    if unknown:  # every shape depends on it
        unknown.append(".*")
    fields = {
        "width": width,
        "head_dim": vote("head_dim", divisor, width),
        "patch_size": vote("patch_size", patch, 1),
        "mlp_ratio": vote("mlp_ratio", ratio, 1),
    }
    if architecture == "LVSMEncoderDecoder":
        fields["num_latents"] = vote("num_latents", first(2), 1)
    return Sizes(fields, complaints, re.compile("|".join(unknown) or r"(?!)"))


def weights_of(architecture: str, num_layers: int) -> Iterator[Weight]:
    """All weights of a published architecture."""
    if architecture == "EfficientLVSM":
        yield Weight("rgbp_tokenizer.1.weight", ("input_tokenizer.kernel",))
    else:
        yield Weight("image_tokenizer.1.weight", ("input_tokenizer.kernel",))
        yield Weight("image_token_decoder.0.weight", ("head_norm.scale",))
    yield Weight("target_pose_tokenizer.1.weight", ("target_tokenizer.kernel",))
    yield Weight("image_token_decoder.1.weight", ("head.kernel",))
    if architecture == "EfficientLVSM":
        for layer in range(num_layers):
            yield from _block(f"input_self_attn_blocks.{layer}", "encoder", layer, norms=False)
            yield from _decoder_block(f"self_cross_blocks.{layer}", "decoder", layer)
    elif architecture == "LVSMDecoderOnly":
        yield Weight("transformer_input_layernorm.weight", ("norm.scale",))
        yield from _transformer("transformer_blocks", "transformer", num_layers)
    else:
        yield Weight("n_light_field_latent", ("latents",), transposed=False)
        yield Weight("transformer_input_layernorm_decoder.weight", ("decoder_norm.scale",))
        yield from _transformer("transformer_encoder", "encoder", num_layers)
        yield from _transformer("transformer_decoder", "decoder", num_layers)


def _transformer(torch: str, ours: str, num_layers: int) -> Iterator[Weight]:
    for layer in range(num_layers - 1):
        yield from _block(f"{torch}.{layer}", f"{ours}.blocks", layer, norms=True)
    yield from _block(f"{torch}.{num_layers - 1}", f"{ours}.last", None, norms=True)


def _block(torch: str, ours: str, layer: int | None, *, norms: bool) -> Iterator[Weight]:
    if norms:
        yield Weight(f"{torch}.norm1.weight", (f"{ours}.norm1.scale",), layer)
        yield Weight(f"{torch}.norm2.weight", (f"{ours}.norm2.scale",), layer)
    yield from _attention(f"{torch}.attn", f"{ours}.self_attention", layer, "to_qkv")
    yield from _mlp(torch, ours, layer)


def _decoder_block(torch: str, ours: str, layer: int) -> Iterator[Weight]:
    yield from _attention(f"{torch}.self_attn", f"{ours}.self_attention", layer, "to_qkv")
    yield from _attention(f"{torch}.cross_attn", f"{ours}.cross_attention", layer, "to_q", "to_kv")
    yield from _mlp(torch, ours, layer)


def _attention(torch: str, ours: str, layer: int | None, *projections: str) -> Iterator[Weight]:
    for projection in projections:
        names = ("to_q", "to_kv") if projection == "to_qkv" else (projection,)
        kernels = tuple(f"{ours}.{name}.kernel" for name in names)
        yield Weight(f"{torch}.{projection}.weight", kernels, layer)
    yield Weight(f"{torch}.fc.weight", (f"{ours}.out.kernel",), layer)
    yield Weight(f"{torch}.q_norm.weight", (f"{ours}.q_norm.scale",), layer)
    yield Weight(f"{torch}.k_norm.weight", (f"{ours}.k_norm.scale",), layer)


def _mlp(torch: str, ours: str, layer: int | None) -> Iterator[Weight]:
    yield Weight(f"{torch}.mlp.mlp.0.weight", (f"{ours}.mlp.up.kernel",), layer)
    yield Weight(f"{torch}.mlp.mlp.2.weight", (f"{ours}.mlp.down.kernel",), layer)


def _whole(value: float) -> int:
    return int(value) if value == int(value) else 0


def _whole_root(value: float) -> int:
    root = math.isqrt(int(value))
    return root if root**2 == value else 0
