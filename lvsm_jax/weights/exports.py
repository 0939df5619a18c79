"""Exports: the weights of a model in a directory, with what they are of.

An export has `config.json` (architecture, sizes, what it was trained on, and a checksum of each
array) and `weights/`, an Orbax checkpoint with one array for each name of
`common.tree.named_leaves`; or of a packed export the one file that `packed` writes.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Shaped, UInt32
from orbax.checkpoint import v1 as ocp

from lvsm_jax import __version__
from lvsm_jax.common.checks import check_choice
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import (
    already_there,
    clear_unfinished,
    disk_errors_in_a_line,
    expand,
    read_json,
    temporary_name,
)
from lvsm_jax.common.tree import from_named, map_named, named_leaves
from lvsm_jax.models.architectures import (
    CONFIGS,
    abstract_model,
    architecture_of,
    config_class,
    module_of,
)
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel, check_options
from lvsm_jax.parallel import processes
from lvsm_jax.weights import packed
from lvsm_jax.weights.fingerprints import fingerprint
from lvsm_jax.weights.shipped import SHIPPED

# Of what `save` writes: 1, and 2 for packed exports, which older versions cannot read.
FORMAT, PACKED_FORMAT = 1, 2
FORMATS = (FORMAT, PACKED_FORMAT)

_PACKED_FILE = "packed.safetensors"

# Fields of config.json by which `load` verifies; exports from before format 1 have none of them.
_VERIFIED_BY = {"format", "arrays", "files", "checksum"}


class DamagedExportError(UserError):
    """An export that is not what was saved."""


def save(
    model: ViewSynthesisModel,
    path: epath.PathLike,
    *,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an export that `load` reads; under `path` it is complete or not there at all.

    All of several processes call it. With a `dtype` of bfloat16 or int8 it is packed: of half or a
    quarter of the bytes, the same for the same weights, and nearly the same model. `about` is what
    else `config.json` should say, such as the training step, as JSON values. Raises FileExistsError
    where something is already, or with `overwrite` something that is no export; UserError for
    another dtype.
    """
    check_choice("dtype", dtype, ("float32", *packed.DTYPES))
    packs = {"dtype": dtype} if dtype in packed.DTYPES else {}
    path, main = absolute(path), processes.is_main()
    # Ends in no name that a reader would take for an export, should the process die here.
    temporary = path.parent / processes.gather_texts(temporary_name(path).name)[0]
    with processes.error_of_any():
        if main:
            clear_unfinished(path.parent, path.name)
            check_free(path, overwrite)
            temporary.mkdir(parents=True)
    try:
        leaves = named_leaves(model)
        write = _write_packed if packs else _write_whole
        with disk_errors_in_a_line(f"the export {path}"):
            arrays = write(temporary / "weights", leaves, **packs)
        with processes.error_of_any():
            if main:
                module = module_of(model.config)
                description = {
                    "format": PACKED_FORMAT if packs else FORMAT,
                    "version": __version__,
                    **packs,
                    "architecture": architecture_of(model.config),
                    **({"import": module} if module else {}),
                    "model": dataclasses.asdict(model.config),
                    **(about or {}),
                    "arrays": arrays,
                    "files": {
                        file.relative_to(temporary).as_posix(): _fingerprint_file(file)
                        for file in _files(temporary / "weights")
                    },
                }
                description["checksum"] = _checksum(description)
                (temporary / "config.json").write_text(json.dumps(description, indent=2) + "\n")
                _replace(path, temporary)
    except BaseException:
        if main and temporary.exists():
            temporary.rmtree()
        raise


def _fingerprint_file(file: epath.Path) -> str:
    """Size and CRC; of large files, which hold arrays that have their own CRCs, the size alone.

    Small ones say where these are: of damage there Orbax would print tracebacks.
    """
    if not file.exists():
        return "missing"
    size = file.stat().length
    return f"{size} bytes" + (f" {zlib.crc32(file.read_bytes()):08x}" if size <= 2**20 else "")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for part in sorted(folder.iterdir()):
        yield from _files(part) if part.is_dir() else [part]


def _checksum(description: Mapping[str, Any]) -> str:
    """Of all that config.json says, apart from layout and order."""
    said = {name: value for name, value in description.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def _write_whole(folder: epath.Path, leaves: Mapping[str, Any]) -> dict[str, str]:
    """Writes the arrays as they are; returns the fingerprint of each."""
    arrays = {name: fingerprint(processes.gather(leaf)) for name, leaf in leaves.items()}
    ocp.save(folder, leaves)
    return arrays


def _write_packed(folder: epath.Path, leaves: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """Writes the arrays packed; returns the fingerprint of each that is stored."""
    stored = {}
    for name, leaf in leaves.items():
        stored |= packed.pack(name, processes.gather(leaf), dtype)
    with processes.error_of_any():
        if processes.is_main():
            folder.mkdir()
            packed.write(folder / _PACKED_FILE, stored)
    return {name: fingerprint(array) for name, array in stored.items()}


def check_free(path: epath.PathLike, overwrite: bool) -> None:
    """Raises FileExistsError unless `save` may make an export at `path`."""
    path = epath.Path(path)
    if path.exists() and not overwrite:
        raise already_there(path)
    parts = {part.name for part in path.iterdir()} if path.is_dir() else set()
    if path.exists() and parts != {"config.json", "weights"}:
        raise FileExistsError(f"{path} exists and is no export: it is not overwritten")


def _replace(path: epath.Path, temporary: epath.Path) -> None:
    old = temporary.with_suffix(".old")  # there is a moment without an export, but no loss
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    if old.exists():
        old.rmtree()


def describe(path: epath.PathLike, *, verify: bool = True) -> dict[str, Any]:
    """The `config.json` of an export.

    Raises FileNotFoundError for no export; UserError for a `config.json` of something else, of a
    later format, or damaged.
    """
    path = expand(path)
    for part in ("config.json", "weights"):
        if not (path / part).exists():
            hint = f"; there is one at {path / 'export'}" if (path / "export").exists() else ""
            raise FileNotFoundError(f"{path} is no export: {path / part} is missing{hint}")
    file = path / "config.json"
    description = read_json(file)
    if not {"architecture", "model"} <= description.keys():
        raise UserError(f"{file} does not say which architecture and model it is")
    found = description.get("format", FORMAT)
    if found not in FORMATS:
        raise UserError(
            f"{path} is an export of format {found}, written by version "
            f"{description.get('version')}; version {__version__} reads formats {FORMATS}"
        )
    if found == PACKED_FORMAT:
        check_choice(f"{file}: dtype", description.get("dtype"), packed.DTYPES)
    verified_by = _VERIFIED_BY & description.keys()
    intact = verified_by == _VERIFIED_BY and description["checksum"] == _checksum(description)
    if verify and verified_by and not intact:
        reason = "is not what was saved: damaged, or changed by hand"
        anyway = "lvsm_jax.load(..., verify=False) loads it nonetheless"
        raise DamagedExportError(f"{file} {reason}; {anyway}")
    return description


def model_config(path: epath.PathLike, *, verify: bool = True, **options: Any) -> ModelConfig:
    """The configuration of an export's model, with other options of how to compute.

    Raises as `describe`, and UserError for an architecture or a field that this version does not
    know, or an option that the weights depend on. The module that an export names for a model of
    somebody's own is not imported.
    """
    description = describe(path, verify=verify)
    _check_imported(path, description)
    try:
        cls = config_class(description["architecture"])
        config = cls(**description["model"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}/config.json: {error}") from error
    check_options(cls, options)
    return dataclasses.replace(config, **options)


def _check_imported(path: epath.PathLike, description: Mapping[str, Any]) -> None:
    """Raises UserError, which says what to type, where a model's module was not imported."""
    architecture, module = description["architecture"], description.get("import")
    if module is None or architecture in CONFIGS:
        return
    if not isinstance(module, str) or not all(map(str.isidentifier, module.split("."))):
        raise UserError(f"{path}/config.json: import is {module!r:.100}, expected a module's name")
    raise UserError(
        f"{path} is of the model {architecture!r:.100}, which the module {module} registers. An "
        f"export cannot have code imported by itself: if you trust that module, --import={module}, "
        f"or in Python, import {module} before"
    )


def load(
    path: epath.PathLike = SHIPPED,
    *,
    verify: bool = True,
    for_rendering: bool = False,
    **options: Any,
) -> ViewSynthesisModel:
    """The model of an export, a directory that `save` wrote; by default the one that is shipped.

    Packed weights become float32 again. `verify` compares all that is read with its checksums,
    which exports from before format 1 do not have. Options change fields of the model's
    configuration that say how to compute: `dtype`, `residual_dtype`, `attention`, `remat`,
    `unroll` (False unless asked for: what pays in a long run makes a first picture wait),
    `targets_at_once`, `cache_dtype`. `for_rendering` is `in_compute_dtype`: a model that
    computes in bfloat16 takes half the memory. Raises FileNotFoundError for no export; UserError,
    which names export and array, for an unknown architecture or format, weights that do not fit, or
    damage.
    """
    path = absolute(path)
    description = describe(path, verify=verify)
    options = {"unroll": False} | options
    template = abstract_model(model_config(path, verify=verify, **options))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for name, leaf in named_leaves(template).items()
    }
    verified = verify and "checksum" in description
    if verified:
        found = {name: _fingerprint_file(path / name) for name in description["files"]}
        _check_same(path, "file", found, description["files"])
    dtype = description["dtype"] if description.get("format") == PACKED_FORMAT else None
    leaves = _read_packed(path, abstract, dtype) if dtype else _read_export(path, abstract)
    if verified:
        found = {name: fingerprint(np.asarray(leaf)) for name, leaf in leaves.items()}
        _check_same(path, "array", found, description["arrays"])
    if dtype:
        unpacked = {name: packed.unpack(name, leaves) for name in abstract}
        leaves = {name: jax.device_put(array, device) for name, array in unpacked.items()}
    model = from_named(template, leaves)
    return in_compute_dtype(model) if for_rendering else model


def in_compute_dtype(model: ViewSynthesisModel) -> ViewSynthesisModel:
    """The same model with its matrices held in the dtype that they are rounded to anyway.

    It renders the same bits. It is not for training, whose steps are smaller than bfloat16 tells
    apart.
    """

    def cast(name: str, leaf: Array) -> Array:
        # The head that copies computes in float32, whatever the model does.
        rounded = name.endswith("kernel") and not name.startswith("copy_head.")
        return leaf.astype(model.config.dtype) if rounded else leaf

    return map_named(cast, model)


def _read_packed(
    path: epath.Path, abstract: Mapping[str, Any], dtype: str
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The stored arrays of a packed export."""
    file = path / "weights" / _PACKED_FILE
    try:
        stored = packed.read(file)
    except MemoryError:
        raise
    except Exception as error:  # of several types, where the file is damaged
        raise DamagedExportError(f"{path} is damaged: {file} cannot be read") from error
    expected = packed.stored_shapes(abstract, dtype)
    told = [{name: f"{x.dtype}{x.shape}" for name, x in of.items()} for of in (stored, expected)]
    _check_same(path, "array", *told)
    return stored


def _read_export(path: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays one after the other, which takes no longer, and tells which cannot be read."""
    weights, leaves = path / "weights", {}
    context = _alone()
    context.pytree.loading.partial_load = True
    with context:
        try:
            stored = ocp.metadata(weights).metadata
            shapes = {name: str(array.shape) for name, array in stored.items()}
        except Exception as error:  # of any type, where Orbax meets a damaged file
            message = f"{path} is damaged: what is in {weights} cannot be read"
            raise DamagedExportError(message) from error
        expected = {name: str(array.shape) for name, array in abstract.items()}
        _check_same(path, "array", shapes, expected)
        for name, array in abstract.items():
            try:
                leaves |= ocp.load(weights, {name: array})
            except (MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:
                message = f"{path} is damaged: array {name} cannot be read"
                raise DamagedExportError(message) from error
    return leaves


def _check_same(
    path: epath.Path, part: str, found: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    """Raises DamagedExportError, naming the first part that is not as expected."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            here, there = found.get(name, "missing"), expected.get(name, "none of that name")
            problem = f"{part} {name} is {here}, expected {there}; copy or export it again"
            raise DamagedExportError(f"{path} is damaged: {problem}")


def _alone() -> ocp.Context:
    """Orbax works without waiting for other processes: for ever, if one failed before."""
    me = ocp.multihost.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    return context


def read_arrays(path: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a directory that Orbax wrote, read by this process alone."""
    with _alone():
        return ocp.load(path, dict(abstract))


@jax.jit
def checksums(leaves: Mapping[str, Array]) -> UInt32[Array, " n"]:
    """The sum of each array's bits, in the order of names: whole numbers, the same on any mesh."""
    ordered = [leaves[name] for name in sorted(leaves)]
    types = [f"uint{8 * leaf.dtype.itemsize}" for leaf in ordered]
    bits = map(jax.lax.bitcast_convert_type, ordered, types)
    return jnp.stack([numbers.astype(jnp.uint32).sum() for numbers in bits])


def absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths."""
    path = expand(path)
    return path if "://" in os.fspath(path) else path.resolve()
