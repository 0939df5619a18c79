"""Weights of the published PyTorch programs, as models of this package, and back.

    python -m lvsm_jax.convert checkpoint.pt exports/published         # from PyTorch
    python -m lvsm_jax.convert runs/re10k_256/export trained.safetensors  # to PyTorch

From PyTorch: a file of `torch.save` (weights under `model` or `state_dict`, or nothing else in it)
or a .safetensors file becomes an export, which `lvsm_jax.load`, `eval.py --checkpoint` and
`train.py --config.init_from` take. Architecture and sizes are inferred; every weight must be there,
with its shape, and nothing else. Back: an export becomes a .safetensors file with the published
names. Both directions keep each float32 bit for bit. Neither needs PyTorch. See docs/weights.md.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jaxtyping import Shaped

from lvsm_jax import torch_file
from lvsm_jax.architectures import CONFIGS, abstract_model, architecture_of
from lvsm_jax.checkpoint import check_free, load, save
from lvsm_jax.files import atomic_write
from lvsm_jax.model import ViewSynthesisModel, check_options
from lvsm_jax.torch_names import (
    SIZES,
    Weight,
    architecture_and_layers,
    sizes_of,
    split_name,
    weights_of,
)
from lvsm_jax.tree import from_named, named_leaves

StateDict = Mapping[str, Shaped[np.ndarray, "..."]]

_DTYPES = [np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)]


def from_state_dict(arrays: StateDict, **options: Any) -> ViewSynthesisModel:
    """The model whose torch weights these are; architecture and sizes are inferred.

    Args:
        arrays: `{torch name: array}`, float32, or float16 or bfloat16, which become float32. A
            prefix `module.` or `_orig_mod.` is taken off; frozen helper networks
            (`loss_computer.*`, `repa_encoder.*`, `repa_projector.*`) are left out.
        **options: fields of the model's configuration that no weight tells: `dtype`,
            `attention`, `remat`, `targets_at_once`, `cache_dtype`.

    Raises:
        ValueError: weights of no known architecture; or weights that are missing, surplus,
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
        if not sizes.untold.fullmatch(weight.torch_name)
    }
    problems = _problems(arrays, [weight.torch_name for weight in weights], expected)
    if problems or sizes.complaints:
        lines = "\n  ".join([*sizes.complaints, *problems])
        raise ValueError(f"weights that do not fit {architecture}:\n  {lines}")
    return from_named(template, _leaves(arrays, weights, leaves))


def to_state_dict(model: ViewSynthesisModel) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The model's weights under the published names and in torch's shapes.

    Raises:
        ValueError: a variant of the model that no published program has.
    """
    config = model.config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in config.structure and field.name not in SIZES and value != field.default:
            raise ValueError(
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
            raise ValueError(f"{short} is there twice, with the prefix module. or _orig_mod.")
        if not is_helper:
            stripped[short] = array
    return stripped


def _torch_shape(weight: Weight, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    shapes = [leaves[name].shape[0 if weight.layer is None else 1 :] for name in weight.names]
    if not weight.transposed:
        return shapes[0]
    return (sum(shape[-1] for shape in shapes), *shapes[0][:-1])


def _problems(
    arrays: Mapping[str, np.ndarray], names: list[str], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is wrong with the weights; their shapes only where `expected` tells them."""
    there = [name for name in names if name in arrays]
    known = set(names)
    problems = [
        f"missing {name} {expected.get(name, '')}".rstrip() for name in names if name not in arrays
    ]
    problems += [f"surplus {name} {a.shape}" for name, a in arrays.items() if name not in known]
    for name in there:
        array, shape = arrays[name], expected.get(name, arrays[name].shape)
        if array.shape != shape:
            problems.append(f"{name} has shape {array.shape}, expected {shape}")
        if array.dtype not in _DTYPES:
            problems.append(f"{name} is {array.dtype}, expected float32, float16 or bfloat16")
        elif not np.isfinite(array).all():
            problems.append(f"{name} holds values that are not finite")
    return problems


def _leaves(
    arrays: Mapping[str, np.ndarray], weights: list[Weight], shapes: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Our arrays, made one after the other: beside them no second copy of the model is held."""
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


class Checkpoint(NamedTuple):
    """What a file of PyTorch weights holds.

    Attributes:
        arrays: the state dict; views of the file, which take no memory until they are used.
        counters: whole numbers that stand beside it, such as the training step.
    """

    arrays: dict[str, np.ndarray]
    counters: dict[str, int]


def read_checkpoint(path: epath.PathLike) -> Checkpoint:
    """Reads a state dict from a file of `torch.save` or of safetensors, told by their content.

    Raises:
        OSError: no such file.
        ValueError: another kind of file, a damaged one, or one without a state dict.
    """
    with epath.Path(path).open("rb") as file:
        start = file.read(9)
    if start.startswith((b"PK", b"\x80\x02")):  # a zip; or a file from before torch 1.6, refused
        return _from_torch(path, torch_file.load(path))
    if start[8:] == b"{":
        return Checkpoint(_read_safetensors(path), {})
    raise ValueError(f"{path} is neither a file of torch.save nor of safetensors, or is truncated")


def _from_torch(path: epath.PathLike, content: Any) -> Checkpoint:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of weights")
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            weights = content[key]
            break
    else:
        if not all(isinstance(value, np.ndarray) for value in content.values()):
            raise ValueError(
                f"{path} has no weights under 'model' or 'state_dict', but the keys "
                f"{sorted(map(str, content))[:10]}"
            )
        key, weights = "the file", content
    others = [
        f"{name!r} ({type(value).__name__})"
        for name, value in weights.items()
        if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if others or not weights:
        raise ValueError(f"{path}: {key} is no state dict, it holds {others[:5] or 'nothing'}")
    counters = {str(name): value for name, value in content.items() if type(value) is int}
    return Checkpoint(weights, counters)


_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _read_safetensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Views of the mapped file, where the library's own reader makes copies of all."""
    try:
        with safetensors.safe_open(path, framework="np"):  # checks the header and all offsets
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{path}: {name} is {entry['dtype']}, which is not read")
        first, last = entry["data_offsets"]
        values = content[start + first : start + last].view(_SAFETENSORS_DTYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def import_weights(
    checkpoint: epath.PathLike, output: epath.PathLike, *, overwrite: bool = False
) -> ViewSynthesisModel:
    """Makes an export of a file of PyTorch weights, and returns the model.

    The export's `config.json` says which file it was, and has the file's counters.

    Raises:
        FileExistsError: something is at `output` already.
        OSError: no such file.
        ValueError: see `read_checkpoint` and `from_state_dict`.
    """
    checkpoint, output = epath.Path(checkpoint), epath.Path(output)
    if output.suffix in _WEIGHT_FILES:
        raise ValueError(
            f"{output}: a file of weights becomes an export, a directory; an export becomes a "
            ".safetensors file"
        )
    check_free(output, overwrite)
    model, counters = _read_model(checkpoint)
    about = {"source": {"file": checkpoint.name, "counters": counters}}
    save(model, output, about=about, overwrite=overwrite)
    return model


def _read_model(checkpoint: epath.Path) -> tuple[ViewSynthesisModel, dict[str, int]]:
    """Apart from what is done with it, so that the file is no longer mapped then."""
    arrays, counters = read_checkpoint(checkpoint)
    try:
        return from_state_dict(arrays), counters
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error


def export_weights(
    export: epath.PathLike, output: epath.PathLike, *, overwrite: bool = False
) -> ViewSynthesisModel:
    """Writes the weights of an export as a .safetensors file, and returns the model.

    Raises:
        FileExistsError: something is at `output` already.
        FileNotFoundError: no export.
        ValueError: an output of another name, or a model that no published program has.
    """
    output = epath.Path(output)
    if not output.name.endswith(".safetensors"):
        raise ValueError(f"{output}: an export becomes a file whose name ends in .safetensors")
    if output.exists() and not overwrite:
        raise FileExistsError(
            f"{output} exists; choose another path, or ask to overwrite it (--overwrite)"
        )
    if output.is_dir():
        raise FileExistsError(f"{output} exists and is a directory")
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


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, and converts."""
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file of weights, or an export")
    parser.add_argument("output", metavar="OUT", help="export to make, or .safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
    given = parser.parse_args(arguments)
    to_torch = epath.Path(given.checkpoint).is_dir()
    convert = export_weights if to_torch else import_weights
    try:
        model = convert(given.checkpoint, given.output, overwrite=given.overwrite)
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {error}")
    print(_summary(model))
    print(f"wrote {os.fspath(given.output)}")
    if not to_torch:
        config = _CONFIGS[architecture_of(model.config)]
        print(
            f"""
What is in it, and its scores:
  python -m lvsm_jax.describe {given.output}
  python eval.py --config=configs/{config}.py --checkpoint={given.output}"""
        )


# Configs with the published sizes and protocol, by architecture.
_CONFIGS = {
    "EfficientLVSM": "re10k_256",
    "LVSMDecoderOnly": "lvsm_decoder_only_256",
    "LVSMEncoderDecoder": "lvsm_encoder_decoder_256",
}


def _summary(model: ViewSynthesisModel) -> str:
    number = sum(leaf.size for leaf in jax.tree.leaves(model))
    sizes = ", ".join(
        f"{name} {value}" for name, value in model.config.structure.items() if name in SIZES
    )
    return f"{architecture_of(model.config)}, {number / 1e6:.2f} M parameters: {sizes}"


if __name__ == "__main__":
    main()
