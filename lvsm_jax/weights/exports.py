"""Exports: the weights of a model in a directory, with what they are of.

An export has `config.json` (architecture, sizes, and what it was trained on) and `weights/`, an
Orbax checkpoint with one array for each name of `common.tree.named_leaves`.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import abstract_model, architecture_of, config_class
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel, check_options
from lvsm_jax.parallel import processes


def save(
    model: ViewSynthesisModel,
    path: epath.PathLike,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an export that `load` reads; under `path` it is complete or not there at all.

    Args:
        model: the weights.
        path: directory to make.
        about: what else `config.json` should say, such as the training step; JSON values.
        overwrite: replace an export that is there.

    Raises:
        FileExistsError: something is there already, or something that is no export.
    """
    path, main = absolute(path), processes.is_main()
    # Ends in no name that a reader would take for an export, should the process die here.
    token = processes.gather_texts(uuid.uuid4().hex[:8])[0]
    temporary = path.parent / f".{path.name}.{token}.tmp"
    with processes.error_of_any():
        if main:
            check_free(path, overwrite)
            temporary.mkdir(parents=True)
    try:
        ocp.save(temporary / "weights", named_leaves(model))
        with processes.error_of_any():
            if main:
                _describe(model, temporary, about or {})
                _replace(path, temporary)
    except BaseException:
        if main and temporary.exists():
            temporary.rmtree()
        raise


def check_free(path: epath.PathLike, overwrite: bool) -> None:
    """Raises FileExistsError unless `save` may make an export at `path`."""
    path = epath.Path(path)
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"{path} exists; choose another path, or ask to overwrite it (--overwrite)"
        )
    if not path.is_dir() or {part.name for part in path.iterdir()} != {"config.json", "weights"}:
        raise FileExistsError(f"{path} exists and is no export: it is not overwritten")


def _describe(model: ViewSynthesisModel, directory: epath.Path, about: Mapping[str, Any]) -> None:
    description = {
        "architecture": architecture_of(model.config),
        "model": dataclasses.asdict(model.config),
        **about,
    }
    (directory / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def _replace(path: epath.Path, temporary: epath.Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = temporary.with_suffix(".old")  # there is a moment without an export, but no loss
    path.rename(old)
    temporary.rename(path)
    old.rmtree()


def describe(path: epath.PathLike) -> dict[str, Any]:
    """The `config.json` of an export.

    Raises:
        FileNotFoundError: no export there.
        ValueError: a `config.json` of something else.
    """
    path = epath.Path(path)
    for part in ("config.json", "weights"):
        if not (path / part).exists():
            hint = f"; there is one at {path / 'export'}" if (path / "export").exists() else ""
            raise FileNotFoundError(f"{path} is no export: {path / part} is missing{hint}")
    try:
        description = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    if not isinstance(description, dict) or not {"architecture", "model"} <= description.keys():
        raise UserError(f"{path / 'config.json'} does not say which architecture and model it is")
    return description


def model_config(path: epath.PathLike, **options: Any) -> ModelConfig:
    """The configuration of an export's model, with other options of how to compute.

    Raises:
        FileNotFoundError: no export there.
        ValueError: an architecture or a field that this version does not know, or an option that
            the weights depend on.
    """
    description = describe(path)
    try:
        cls = config_class(description["architecture"])
        config = cls(**description["model"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}/config.json: {error}") from error
    check_options(cls, options)
    return dataclasses.replace(config, **options)


def load(path: epath.PathLike, **options: Any) -> ViewSynthesisModel:
    """The model of an export.

    Args:
        path: directory that `save` wrote.
        **options: fields of the model's configuration to change, of those that say how to
            compute: `dtype`, `attention`, `remat`, `targets_at_once`, `cache_dtype`.

    Raises:
        FileNotFoundError: no export there.
        ValueError: an architecture that this version does not know, or weights that do not fit.
    """
    template = abstract_model(model_config(path, **options))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), template
    )
    return from_named(template, read_arrays(absolute(path) / "weights", named_leaves(abstract)))


def read_arrays(path: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a directory that Orbax wrote, without waiting for other processes.

    Orbax would have all wait for each other at the end, for ever if one fails before.
    """
    me = ocp.multihost.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    with context:
        return ocp.load(path, dict(abstract))


@jax.jit
def checksums(leaves: Mapping[str, Array]) -> UInt32[Array, " n"]:
    """The sum of each array's bits, in the order of names.

    Whole numbers add up to the same in any order, so it is the same on any mesh.
    """

    def of_one(leaf: Array) -> Array:
        bits = leaf.dtype.itemsize * 8
        return jax.lax.bitcast_convert_type(leaf, f"uint{bits}").astype(jnp.uint32).sum()

    return jnp.stack([of_one(leaves[name]) for name in sorted(leaves)])


def absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.resolve()
