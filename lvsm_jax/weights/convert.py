"""Weights of the published PyTorch programs, as models of this package, and back.

Both directions keep each float32 bit for bit. Neither needs PyTorch. See docs/weights.md.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Shaped

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import atomic_write, check_new_file, expand
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import CONFIGS, abstract_model, architecture_of
from lvsm_jax.models.base import ViewSynthesisModel, check_options
from lvsm_jax.weights.exports import check_free, load, save
from lvsm_jax.weights.state_dict import StateDict, problems, read_checkpoint
from lvsm_jax.weights.torch_names import (
    SIZES,
    Weight,
    architecture_and_layers,
    sizes_of,
    split_name,
    weights_of,
)


def from_state_dict(arrays: StateDict, **options: Any) -> ViewSynthesisModel:
    """The model whose torch weights these are; architecture and sizes are inferred.

    Args:
        arrays: `{torch name: array}`, float32, or float16 or bfloat16, which become float32. A
            prefix `module.` or `_orig_mod.` is taken off; frozen helper networks
            (`loss_computer.*`, `repa_encoder.*`, `repa_projector.*`) are left out.
        **options: fields of the model's configuration that cannot be inferred: `dtype`,
            `attention`, `remat`, `targets_at_once`, `cache_dtype`.

    Raises:
        UserError: weights of no known architecture; or weights that are missing, surplus,
            mis-shaped, of another type or not finite, all named.
    """
    arrays = _strip(arrays)
    architecture, num_layers = architecture_and_layers(arrays)
    check_options(CONFIGS[architecture], options)
    sizes = sizes_of(architecture, {name: array.shape for name, array in arrays.items()})
    config = CONFIGS[architecture](num_layers=num_layers, **sizes.fields, **options)
    template = abstract_model(config)
    leaves = named_leaves(template)
    weights = list(weights_of(architecture, num_layers))
    expected = {
        weight.torch_name: _torch_shape(weight, leaves)
        for weight in weights
        if not sizes.unknown.fullmatch(weight.torch_name)
    }
    found = problems(arrays, [weight.torch_name for weight in weights], expected)
    if found or sizes.complaints:
        lines = "\n  ".join([*sizes.complaints, *found])
        raise UserError(f"weights that do not fit {architecture}:\n  {lines}")
    return from_named(template, _leaves(arrays, weights, leaves))


def to_state_dict(model: ViewSynthesisModel) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The model's weights under the published names and in torch's shapes.

    Raises:
        UserError: a variant of the model that no published program has.
    """
    config = model.config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in config.structure and field.name not in SIZES and value != field.default:
            raise UserError(
                f"model.{field.name} is {value!r}: no published program has such a model, only "
                f"those with {field.default!r}"
            )
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(model).items()}

    def array(weight: Weight) -> np.ndarray:
        parts = [leaves[name] for name in weight.names]
        if weight.layer is not None:
            parts = [part[weight.layer] for part in parts]
        if weight.transposed:
            parts = [part.T for part in parts]
        return np.ascontiguousarray(np.concatenate(parts))

    weights = weights_of(architecture_of(config), config.num_layers)
    return {weight.torch_name: array(weight) for weight in weights}


def _strip(arrays: StateDict) -> dict[str, np.ndarray]:
    stripped = {}
    for name, array in arrays.items():
        short, is_helper = split_name(name)
        if short in stripped:
            raise UserError(f"{short} is there twice, with the prefix module. or _orig_mod.")
        if not is_helper:
            stripped[short] = array
    return stripped


def _torch_shape(weight: Weight, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    shapes = [leaves[name].shape[0 if weight.layer is None else 1 :] for name in weight.names]
    if not weight.transposed:
        return shapes[0]
    return (sum(shape[-1] for shape in shapes), *shapes[0][:-1])


def _leaves(
    arrays: Mapping[str, np.ndarray], weights: list[Weight], shapes: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Our arrays, made one by one: no second copy of the model is held beside them."""
    parts = collections.defaultdict(list)
    for weight in weights:
        rows = np.cumsum([shapes[name].shape[-1] for name in weight.names])[:-1]
        for name, part in zip(weight.names, np.split(arrays[weight.torch_name], rows), strict=True):
            parts[name].append((weight.layer, part.T if weight.transposed else part))
    leaves = {}
    for name, shape in shapes.items():
        leaf = np.empty(shape.shape, np.float32)
        for layer, part in parts[name]:
            leaf[() if layer is None else layer] = part
        leaves[name] = jax.numpy.asarray(leaf)
    return leaves


# Names of files that people would not expect a directory to have.
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def import_weights(
    checkpoint: epath.PathLike, output: epath.PathLike, *, overwrite: bool = False
) -> ViewSynthesisModel:
    """Makes an export of a file of PyTorch weights, and returns the model.

    The export's `config.json` says which file it was, and has the file's counters.

    Raises:
        FileExistsError: something is at `output` already.
        OSError: no such file.
        UserError: see `read_checkpoint` and `from_state_dict`.
    """
    checkpoint, output = expand(checkpoint), expand(output)
    if output.suffix in _WEIGHT_FILES:
        raise UserError(
            f"{output}: a file of weights becomes an export, a directory; an export becomes a "
            ".safetensors file"
        )
    check_free(output, overwrite)
    model, counters = _read_model(checkpoint)
    about = {"source": {"file": checkpoint.name, "counters": counters}}
    save(model, output, about=about, overwrite=overwrite)
    return model


def _read_model(checkpoint: epath.Path) -> tuple[ViewSynthesisModel, dict[str, int]]:
    """A function of its own, so that the file is unmapped before the export is written."""
    arrays, counters = read_checkpoint(checkpoint)
    try:
        return from_state_dict(arrays), counters
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from error


def export_weights(
    export: epath.PathLike, output: epath.PathLike, *, overwrite: bool = False
) -> ViewSynthesisModel:
    """Writes the weights of an export as a .safetensors file, and returns the model.

    Raises:
        FileExistsError: something is at `output` already.
        FileNotFoundError: no export.
        UserError: an output of another name, or a model that no published program has.
    """
    output = expand(output)
    if not output.name.endswith(".safetensors"):
        raise UserError(f"{output}: an export becomes a file whose name ends in .safetensors")
    check_new_file(output, overwrite)
    model = load(export)
    arrays = to_state_dict(model)
    metadata = {"format": "pt", "architecture": architecture_of(model.config)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as local:
        pathlib.Path(local).touch()
        mode = os.stat(local).st_mode
        safetensors.numpy.save_file(arrays, local, metadata=metadata)
        os.chmod(local, mode)  # the library lets nobody but the owner read its files
    return model
