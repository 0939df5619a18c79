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
from lvsm_jax.common.files import (
    atomic_write,
    check_new_file,
    check_writable,
    clear_unfinished,
    expand,
)
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import CONFIGS, abstract_model, architecture_of
from lvsm_jax.models.base import ViewSynthesisModel, check_options
from lvsm_jax.weights import exports, torch_names
from lvsm_jax.weights.fingerprints import fingerprint_all
from lvsm_jax.weights.state_dict import (
    CHECKSUM,
    Checkpoint,
    StateDict,
    plain_name,
    problems,
    read_checkpoint,
)
from lvsm_jax.weights.torch_names import Weight

# What training checkpoints contain beside the model: frozen networks of the losses, and how many
# steps torch's AveragedModel took the mean of.
_HELPERS = ("loss_computer.", "repa_encoder.", "repa_projector.", "n_averaged")

# Names of files that people would not expect a directory to have.
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def from_state_dict(arrays: StateDict, **options: Any) -> ViewSynthesisModel:
    """The model whose torch weights these are; architecture and sizes are inferred.

    Arrays by torch name are float32, or float16 or bfloat16, which become float32. Prefixes of
    wrapping modules (`module.`, `_orig_mod.`, `model.`) are taken off; frozen helper networks
    (`loss_computer.*`, `repa_encoder.*`, `repa_projector.*`) are left out. Options are fields of
    the configuration that cannot be inferred: `dtype`, `attention`, `remat`, `targets_at_once`,
    `cache_dtype`. Raises UserError for no known architecture, or weights that are missing, surplus,
    mis-shaped, of another type or not finite, all named.
    """
    arrays = _strip(arrays)
    architecture, num_layers = torch_names.architecture_and_layers(arrays)
    halves = torch_names.halves_of(arrays)
    if not torch_names.is_published(architecture, halves):
        raise UserError(f"{architecture} with weights of halves, which no published program has")
    arrays = {
        name: array
        for name, array in arrays.items()
        if not torch_names.is_unused(name, architecture, halves)
    }
    check_options(CONFIGS[architecture], options)
    shapes = {name: array.shape for name, array in arrays.items()}
    sizes = torch_names.sizes_of(architecture, shapes, halves)
    variant = {} if halves == "joint" else {"halves": halves}
    config = CONFIGS[architecture](num_layers=num_layers, **sizes.fields, **variant, **options)
    template = abstract_model(config)
    leaves = named_leaves(template)
    weights = torch_names.weights_of(architecture, num_layers, halves)
    expected = {
        name: _torch_shape(weight, leaves)
        for name, weight in weights.items()
        if not sizes.unknown.fullmatch(name)
    }
    if found := [*sizes.complaints, *problems(arrays, list(weights), expected)]:
        raise UserError(f"weights that do not fit {architecture}:\n  " + "\n  ".join(found))
    return from_named(template, _leaves(arrays, weights, leaves))


def to_state_dict(model: ViewSynthesisModel) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The model's weights under the published names and in torch's shapes.

    Raises UserError for a variant of the model that no published program has.
    """
    config = model.config
    if (architecture := architecture_of(config)) not in torch_names.ARCHITECTURES:
        raise UserError(
            f"no published program has weights of {architecture}, only of "
            f"{', '.join(torch_names.ARCHITECTURES)}"
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_variant = field.name in config.structure and field.name not in torch_names.SIZES
        if field.name == "halves" and torch_names.is_published(architecture, value):
            continue
        if is_variant and value != field.default:
            only = f"no published program has such a model, only those with {field.default!r}"
            raise UserError(f"model.{field.name} is {value!r}: {only}")
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(model).items()}
    arrays = {}
    weights = torch_names.weights_of(architecture, config.num_layers, config.halves)
    for torch_name, weight in weights.items():
        parts = [leaves[name] for name in weight.names]
        if weight.layer is not None:
            parts = [part[weight.layer] for part in parts]
        if weight.transposed:
            parts = [part.T for part in parts]
        arrays[torch_name] = np.ascontiguousarray(np.concatenate(parts))
    return arrays


def _strip(arrays: StateDict) -> dict[str, np.ndarray]:
    """The arrays without helper networks, by names without prefixes."""
    stripped = {}
    for name, array in arrays.items():
        short = plain_name(name)
        if short in stripped:
            raise UserError(f"{short} is there twice, with a prefix such as module. or _orig_mod.")
        if not short.startswith(_HELPERS):
            stripped[short] = array
    return stripped


def _torch_shape(weight: Weight, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    shapes = [leaves[name].shape[0 if weight.layer is None else 1 :] for name in weight.names]
    if not weight.transposed:
        return shapes[0]
    return (sum(shape[-1] for shape in shapes), *shapes[0][:-1])


def _leaves(
    arrays: Mapping[str, np.ndarray], weights: Mapping[str, Weight], shapes: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Our arrays, made one by one: no second copy of the model is held beside them."""
    parts = collections.defaultdict(list)
    for torch_name, weight in weights.items():
        rows = np.cumsum([shapes[name].shape[-1] for name in weight.names])[:-1]
        for name, part in zip(weight.names, np.split(arrays[torch_name], rows), strict=True):
            parts[name].append((weight.layer, part.T if weight.transposed else part))
    leaves = {}
    for name, shape in shapes.items():
        leaf = np.empty(shape.shape, np.float32)
        for layer, part in parts[name]:
            leaf[() if layer is None else layer] = part
        leaves[name] = jax.numpy.asarray(leaf)
    return leaves


def import_weights(
    checkpoint: epath.PathLike,
    output: epath.PathLike,
    *,
    overwrite: bool = False,
    key: str = "",
) -> ViewSynthesisModel:
    """Makes an export of a file of PyTorch weights, and returns the model.

    The export's `config.json` says under `source` which file it was, its counters, the `key` of the
    weights, and under which other keys it has weights of the same names. Raises
    FileExistsError where something is at `output` already, else as `read_checkpoint` and
    `from_state_dict`.
    """
    checkpoint, output = expand(checkpoint), expand(output)
    if output.suffix in _WEIGHT_FILES:
        kinds = "a file of weights becomes an export, a directory; an export becomes a .safetensors"
        raise UserError(f"{output}: {kinds} file")
    exports.check_free(output, overwrite)
    check_writable("OUT", output.parent)
    model, read = _read_model(checkpoint, key)
    source = {"file": checkpoint.name, "counters": read.counters}
    if key or read.others:
        source |= {"key": read.key, "other_keys": list(read.others)}
    about = {"source": source}
    exports.save(model, output, about=about, overwrite=overwrite)
    return model


def _read_model(checkpoint: epath.Path, key: str) -> tuple[ViewSynthesisModel, Checkpoint]:
    """A function of its own, so that the file is unmapped before the export is written."""
    read = read_checkpoint(checkpoint, key)
    try:
        return from_state_dict(read.arrays), read._replace(arrays={})
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from error


def export_weights(
    export: epath.PathLike, output: epath.PathLike, *, overwrite: bool = False
) -> ViewSynthesisModel:
    """Writes the weights of an export as a .safetensors file, and returns the model.

    Raises FileExistsError where something is at `output` already; UserError for an output of
    another name or a model that no published program has; else as `exports.load`.
    """
    output = expand(output)
    if not output.name.endswith(".safetensors"):
        raise UserError(f"{output}: an export becomes a file whose name ends in .safetensors")
    check_new_file(output, overwrite)
    check_writable("OUT", output.parent)
    model = exports.load(export)
    try:
        arrays = to_state_dict(model)
    except UserError as error:
        raise UserError(f"{export}: {error}") from error
    metadata = {"format": "pt", "architecture": architecture_of(model.config)}
    metadata[CHECKSUM] = fingerprint_all(arrays)
    output.parent.mkdir(parents=True, exist_ok=True)
    clear_unfinished(output.parent, output.name)
    with atomic_write(output) as local:
        pathlib.Path(local).touch()
        mode = os.stat(local).st_mode
        safetensors.numpy.save_file(arrays, local, metadata=metadata)
        os.chmod(local, mode)  # the library lets nobody but the owner read its files
    return model
