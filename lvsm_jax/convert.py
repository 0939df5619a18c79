"""Weights of the published PyTorch programs, as models of this package.

A weight of a torch `Linear` is `[out, in]`; ours is `[in, out]`, with the layers stacked first.
Names are those of `state_dict` in the published checkpoints.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import Num

from lvsm_jax.efficient_lvsm import EfficientLVSM, EfficientLVSMConfig
from lvsm_jax.tree import from_named, named_leaves

StateDict = Mapping[str, Num[np.ndarray, "..."]]

# Frozen helper networks that training checkpoints carry; they are no part of the model.
_HELPERS = ("loss_computer.", "repa_encoder.", "repa_projector.")


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One torch weight: our arrays (of one layer, if any), concatenated along its rows."""

    torch_name: str
    names: tuple[str, ...]
    layer: int | None = None


def from_state_dict(arrays: StateDict, **options: str) -> EfficientLVSM:
    """The model whose torch weights these are; architecture and sizes are inferred.

    Args:
        arrays: `{torch name: array}`. A prefix `module.` or `_orig_mod.` is taken off; frozen
            helper networks (`loss_computer.*`, `repa_encoder.*`, `repa_projector.*`) are left out.
        **options: fields of the model's configuration that no weight tells: `dtype`,
            `attention`, `remat`.

    Raises:
        ValueError: weights of no known architecture; or missing, surplus and mis-shaped weights,
            all named.
    """
    arrays = _strip(arrays)
    config = _infer(arrays, options)
    template = jax.eval_shape(
        lambda key: EfficientLVSM(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    shapes = named_leaves(template)
    weights = list(_weights(config.num_layers))
    _check_names(arrays, {w.torch_name: _torch_shape(w, shapes) for w in weights})
    leaves = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    for weight in weights:
        sizes = [shapes[name].shape[-1] for name in weight.names]
        parts = np.split(arrays[weight.torch_name], np.cumsum(sizes)[:-1])
        for name, part in zip(weight.names, parts, strict=True):
            leaves[name][() if weight.layer is None else weight.layer] = part.T
    return from_named(template, {name: jax.numpy.asarray(leaf) for name, leaf in leaves.items()})


def to_state_dict(model: EfficientLVSM) -> dict[str, Num[np.ndarray, "..."]]:
    """The model's weights under the published names and in torch's shapes."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(model).items()}

    def array(weight: _Weight) -> np.ndarray:
        parts = [leaves[name] for name in weight.names]
        if weight.layer is not None:
            parts = [part[weight.layer] for part in parts]
        return np.ascontiguousarray(np.concatenate([part.T for part in parts]))

    return {weight.torch_name: array(weight) for weight in _weights(model.config.num_layers)}


def _weights(num_layers: int) -> Iterator[_Weight]:
    """All weights of Efficient-LVSM (arXiv 2602.06478) as its authors name them."""
    yield _Weight("rgbp_tokenizer.1.weight", ("input_tokenizer.kernel",))
    yield _Weight("target_pose_tokenizer.1.weight", ("target_tokenizer.kernel",))
    yield _Weight("image_token_decoder.1.weight", ("head.kernel",))
    for i in range(num_layers):
        encoder, decoder = f"input_self_attn_blocks.{i}", f"self_cross_blocks.{i}"
        yield from _attention(f"{encoder}.attn", "encoder.self_attention", i, ("to_qkv",))
        yield from _mlp(f"{encoder}.mlp", "encoder.mlp", i)
        yield from _attention(f"{decoder}.self_attn", "decoder.self_attention", i, ("to_qkv",))
        yield from _attention(
            f"{decoder}.cross_attn", "decoder.cross_attention", i, ("to_q", "to_kv")
        )
        yield from _mlp(f"{decoder}.mlp", "decoder.mlp", i)


def _attention(
    torch: str, ours: str, layer: int, projections: tuple[str, ...]
) -> Iterator[_Weight]:
    if projections == ("to_qkv",):
        both = (f"{ours}.to_q.kernel", f"{ours}.to_kv.kernel")
        yield _Weight(f"{torch}.to_qkv.weight", both, layer)
    else:
        yield _Weight(f"{torch}.to_q.weight", (f"{ours}.to_q.kernel",), layer)
        yield _Weight(f"{torch}.to_kv.weight", (f"{ours}.to_kv.kernel",), layer)
    yield _Weight(f"{torch}.fc.weight", (f"{ours}.out.kernel",), layer)
    yield _Weight(f"{torch}.q_norm.weight", (f"{ours}.q_norm.scale",), layer)
    yield _Weight(f"{torch}.k_norm.weight", (f"{ours}.k_norm.scale",), layer)


def _mlp(torch: str, ours: str, layer: int) -> Iterator[_Weight]:
    yield _Weight(f"{torch}.mlp.0.weight", (f"{ours}.up.kernel",), layer)
    yield _Weight(f"{torch}.mlp.2.weight", (f"{ours}.down.kernel",), layer)


def _torch_shape(weight: _Weight, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[int, ...]:
    ours = [shapes[name].shape[0 if weight.layer is None else 1 :] for name in weight.names]
    return (sum(shape[-1] for shape in ours), *ours[0][:-1])


def _strip(arrays: StateDict) -> dict[str, np.ndarray]:
    stripped = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): a for name, a in arrays.items()}
    if len(stripped) != len(arrays):
        raise ValueError("weights whose names differ only in a prefix module. or _orig_mod.")
    return {name: a for name, a in stripped.items() if not name.startswith(_HELPERS)}


def _infer(arrays: StateDict, options: Mapping[str, str]) -> EfficientLVSMConfig:
    tokenizer, q_norm, up = (
        arrays.get(name)
        for name in (
            "rgbp_tokenizer.1.weight",
            "self_cross_blocks.0.cross_attn.q_norm.weight",
            "self_cross_blocks.0.mlp.mlp.0.weight",
        )
    )
    if tokenizer is None or q_norm is None or up is None:
        raise ValueError(
            "weights of no architecture known here: Efficient-LVSM has rgbp_tokenizer.1.weight and "
            f"self_cross_blocks.0.*, these start with {sorted(arrays)[:5]}"
        )
    width, inputs = tokenizer.shape
    layers = {int(name.split(".")[1]) for name in arrays if name.startswith("self_cross_blocks.")}
    return EfficientLVSMConfig(
        num_layers=max(layers) + 1,
        width=width,
        head_dim=q_norm.shape[0],
        patch_size=round((inputs / 9) ** 0.5),
        mlp_ratio=max(1, up.shape[0] // width),
        **options,
    )


def _check_names(arrays: StateDict, expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in arrays]
    problems += [f"surplus {name} {a.shape}" for name, a in arrays.items() if name not in expected]
    problems += [
        f"{name} has shape {arrays[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if problems:
        raise ValueError("weights that do not fit Efficient-LVSM:\n  " + "\n  ".join(problems))
