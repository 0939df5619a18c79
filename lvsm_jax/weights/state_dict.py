"""State dicts of PyTorch programs: read from files without PyTorch, and checked."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from etils import epath
from jaxtyping import Shaped

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand, read_any_json
from lvsm_jax.common.text import shortened
from lvsm_jax.weights import torch_file
from lvsm_jax.weights.fingerprints import fingerprint_all
from lvsm_jax.weights.plain_pickle import Unread

StateDict = Mapping[str, Shaped[np.ndarray, "..."]]

# Where training programs put the weights among what else they save.
_PLACES = ("model", "state_dict", "model_state_dict", "module")
_INDEX = ".safetensors.index.json"
_PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")  # as hubs cut them
# What training programs that hold the model in another module put before its names: data parallel
# ones, compiled ones, Lightning, FSDP.
_WRAPPERS = re.compile(r"^((module|_orig_mod|model|_forward_module|_fsdp_wrapped_module)\.)+")
_DTYPES = [np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)]


CHECKSUM = "lvsm_jax.checksum"  # in the metadata of a .safetensors file that we wrote

# Weights may be tied, and a zip compressed; beyond, a small file would cost much time and memory.
_FREE_BYTES, _MOST_COPIES = 64 * 2**20, 20


class Checkpoint(NamedTuple):
    """What a file of PyTorch weights holds."""

    arrays: dict[str, np.ndarray]  # views of the file, which take no memory until they are used
    counters: dict[str, int]  # whole numbers that stand beside them, such as the training step
    key: str = ""  # under which they were; empty where nothing else is in the file
    others: tuple[str, ...] = ()  # keys of weights of the same names, such as averaged ones


def plain_name(name: str) -> str:
    """A weight's name without the prefixes of wrapping modules."""
    return _WRAPPERS.sub("", name)


def read_checkpoint(path: epath.PathLike, key: str = "") -> Checkpoint:
    """Reads a state dict from a file of `torch.save` or safetensors, recognised by their content.

    Of safetensors cut into several files, `path` is the index (`*.safetensors.index.json`), one of
    the files beside it, or their folder. Checksums that the file has are compared: those of a file
    of torch.save, and that of a safetensors file which `convert` wrote.

    `key` is where a file of torch.save has the weights (`ema`, or `ema.shadow` for a dict in it),
    by default `model` or `state_dict`. What stands beside them may be anything: what is no data is
    not read. Raises OSError for no such file; UserError for another kind, a damaged or incomplete
    one, no state dict, or none under the key.
    """
    path = expand(path)
    if path.is_dir():
        path = _only_weights_in(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((b"PK", b"\x80\x02")):  # a zip; or a file from before torch 1.6, refused
        content = torch_file.load(path, verify=True, keep_unknown=True)
        return _from_torch(path, content, key)
    if key:
        raise UserError(f"{path}: only files of torch.save have keys, so not {key!r:.60}")
    if path.name.endswith(_INDEX):
        return Checkpoint(_read_shards(path), {})
    if part := _PART.fullmatch(path.name):
        index = path.with_name(f"{part['name']}{_INDEX}")
        if not index.exists():
            raise UserError(f"{path} is one of {int(part['count'])} files, and {index} is missing")
        return Checkpoint(_read_shards(index), {})
    if start[8:] == b"{":
        return Checkpoint(_read_safetensors(path), {})
    raise UserError(f"{path} is neither a file of torch.save nor of safetensors, or is truncated")


def holds_weights(folder: epath.PathLike) -> bool:
    """Whether a folder holds safetensors, in one file or several, as hubs keep them."""
    folder = expand(folder)
    return folder.is_dir() and any(folder.glob("*.safetensors"))


def _only_weights_in(folder: epath.Path) -> epath.Path:
    """The index of a folder's safetensors, or the one file of them."""
    files = sorted(folder.glob(f"*{_INDEX}")) or sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        there = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"{folder}: expected one file of safetensors or their index, it has {there}"
        )
    return files[0]


def _read_shards(index: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of all files that an index names; exactly those that it lists."""
    content = read_any_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or {*map(type, where.values())} != {str}:
        raise UserError(f"{index}: expected a JSON object with 'weight_map', names to files")
    arrays: dict[str, np.ndarray] = {}
    names = sorted(set(where.values()))
    totals = {int(of[1]) for name in names if (of := re.search(r"-of-(\d{1,6})\.", name))}
    if totals and totals != {len(names)}:
        raise UserError(
            f"{index} names {len(names)} files, and their names say of how many: {totals}"
        )
    for name in names:
        file = index.parent / name
        if "/" in name or "\0" in name or not file.is_file():
            raise UserError(
                f"{index} names {name!r:.100}, which is not beside it: the weights are in parts"
            )
        part = _read_safetensors(file)
        if (listed := {key for key, of in where.items() if of == name}) != part.keys():
            other = shortened(min(listed ^ part.keys()), 60)
            raise UserError(f"{file} and {index} do not belong together: {other} is in one alone")
        arrays |= part
    return arrays


def _from_torch(path: epath.Path, content: Any, key: str) -> Checkpoint:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, expected a dict of weights")
    keys = f"the keys {sorted(str(key)[:60] for key in content)[:10]}"
    places = [k for k in _PLACES if isinstance(content.get(k), dict)]
    key = key or (places[0] if places else "")
    weights = _under(key, content) if key else content
    if weights is None:
        raise UserError(f"{path} has no weights under {key!r:.60}, but {keys}")
    if not (key or all(isinstance(value, np.ndarray) for value in content.values())):
        places = " or ".join(map(repr, _PLACES))
        raise UserError(f"{path} has no weights under {places}, but {keys}")
    others = [
        f"{name!r:.60} ({value.name if isinstance(value, Unread) else type(value).__name__})"
        for name, value in weights.items()
        if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if others or not weights:
        held = others[:5] or "nothing"
        raise UserError(f"{path}: {key or 'the file'} is no state dict, it holds {held}")
    total = sum(weight.nbytes for weight in weights.values())
    if total > _FREE_BYTES + _MOST_COPIES * path.stat().length:
        raise UserError(f"{path}: its weights take many times the bytes of the file")
    counters = {str(name): value for name, value in content.items() if type(value) is int}
    return Checkpoint(weights, counters, key, tuple(_alike(weights, key, content)))


def _under(key: str, content: Mapping[Any, Any]) -> dict[Any, Any] | None:
    """The dict at a key, or at `outer.inner`; None for none."""
    found = content.get(key)
    if found is None and "." in key:
        outer, inner = key.split(".", 1)
        return _under(inner, content[outer]) if isinstance(content.get(outer), dict) else None
    return found if isinstance(found, dict) else None


def _alike(weights: StateDict, key: str, content: Mapping[Any, Any]) -> list[str]:
    """Keys of other weights with the names of these; helper networks may be in one alone."""
    names = {plain_name(name) for name in weights}
    found = []
    for outer, value in content.items():
        if not (key and isinstance(outer, str) and isinstance(value, dict)):
            continue
        inside = {f"{outer}.{inner}": of for inner, of in value.items() if isinstance(of, dict)}
        for place, arrays in {outer: value, **inside}.items():
            same = names & {plain_name(name) for name in arrays if isinstance(name, str)}
            if place != key and 2 * len(same) >= len(names):
                found.append(place)
    return found


_SAFETENSORS_DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "BOOL": np.dtype(bool)} | {
    f"{letter}{8 * size}": np.dtype(f"{letter.lower()}{size}")
    for letter, sizes in {"F": (2, 4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}.items()
    for size in sizes
}


def _read_safetensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Views of the mapped file, where the library's own reader makes copies of all."""
    try:
        with safetensors.safe_open(path, framework="np"):  # checks the header and all offsets
            pass
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: {shortened(error)}") from error
    content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    expected = header.pop("__metadata__", {}).get(CHECKSUM)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {name} is {entry['dtype']}, which is not read")
        first, last = entry["data_offsets"]
        values = content[start + first : start + last].view(_SAFETENSORS_DTYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    if expected is not None and fingerprint_all(arrays) != expected:
        raise UserError(f"{path} is damaged: its weights do not have their checksum")
    return arrays


def problems(
    arrays: Mapping[str, np.ndarray], names: list[str], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is wrong with a state dict that must have all these names, a line each.

    `expected` are the shapes; weights without one may have any.
    """
    known, missing = set(names), [name for name in names if name not in arrays]
    found = [f"missing {name} {expected.get(name, '')}".rstrip() for name in missing]
    found += [f"surplus {name} {a.shape}" for name, a in arrays.items() if name not in known]
    for name in filter(arrays.__contains__, names):
        array, shape = arrays[name], expected.get(name, arrays[name].shape)
        if array.shape != shape:
            found.append(f"{name} has shape {array.shape}, expected {shape}")
        if array.dtype not in _DTYPES:
            found.append(f"{name} is {array.dtype}, expected float32, float16 or bfloat16")
        elif not np.isfinite(array).all():
            found.append(f"{name} holds values that are not finite")
    return found
