"""Batches of training and evaluation: typed pytrees of arrays.

Shapes use `b` scenes, `v` input views, `t` target views, `h w` pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lvsm_jax.models.base import readable_cameras
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel.mesh import SCENES, check_batch, data_shard, spec

# Fields are annotated Any, for a pytree also holds shapes, shardings and specs as leaves.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Views:
    """Photographs of several scenes with their cameras; a pytree of NumPy or JAX arrays."""

    images: Any  # uint8 `[b, v, h, w, 3]`; divide by 255 on the device
    cameras: Cameras  # float32, c2w in the scene frame, fxfycxcy in pixels of `images`
    frame: Any  # int32 `[b, v]`, positions in the clip; -1 for a target that only fills up
    # Where it is known, float32 `[b, v, h, w]` along the camera's z axis, infinite for the sky.
    depth: Any = None
    # Where something moves, bool `[b, v, h, w]`: whether the pixel's point is of what moves.
    moving: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The views that the model sees and is to render of several scenes; a pytree of arrays."""

    inputs: Views
    targets: Views
    scene: Any  # int32 `[b]`, rows of the scene table
    valid: Any  # bool `[b]`, False where a row only fills the last batch of an evaluation
    replaced: Any  # int32 `[b]`, samples with a bad frame that this one stands in for
    # Where it is known, int8 `[b, t, h, w]`: how many inputs see the point of a target's pixel, -1
    # where there is none.
    seen: Any = None
    # Where it is known, bool `[b, t, h, w]`: whether a target's pixel is of the object.
    mask: Any = None


def first_scene(batch: Batch) -> Batch:
    """A batch on the devices of a mesh, cut down to its first scene, on every process's host."""
    return jax.device_get(_first_scene(batch))


@jax.jit
def _first_scene(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: x.at[jnp.arange(1)].get(out_sharding=spec()), batch)


def readable_batch(model: Any, batch: Batch) -> Batch:
    """The batch with cameras as the model reads them, see `readable_cameras`."""

    def readable(views: Views) -> Views:
        return dataclasses.replace(views, cameras=readable_cameras(model, views.cameras))

    return dataclasses.replace(
        batch, inputs=readable(batch.inputs), targets=readable(batch.targets)
    )


def to_batch(arrays: Mapping[str, Any]) -> Batch:
    """Makes a Batch of the nested dict of arrays that worker processes send."""

    def views(of: Mapping[str, np.ndarray]) -> Views:
        return Views(of["images"], Cameras(of["c2w"], of["fxfycxcy"]), of["frame"])

    both = {name: views(arrays[name]) for name in ("inputs", "targets")}
    return Batch(**{**arrays, **both})


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
    """The sharding of each leaf of a Batch, or of any arrays with scenes first.

    Scenes are cut first. A Batch's input views are cut along `view`, and so are its targets where
    their number divides; where it does not, the devices of that axis all compute all targets.
    """
    by_view = NamedSharding(mesh, spec(SCENES, "view", mesh=mesh))
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, spec(SCENES, mesh=mesh)), batch)
    if not isinstance(batch, Batch):
        return shardings
    divides = batch.targets.images.shape[1] % mesh.shape["view"] == 0
    cut = {"inputs": batch.inputs}
    if divides:
        cut |= {"targets": batch.targets, "seen": batch.seen, "mask": batch.mask}
    return dataclasses.replace(shardings, **jax.tree.map(lambda _: by_view, cut))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this process's scenes (see `data_shard`) on its devices, as part of the global batch.

    `batch` is a Batch, or any arrays with scenes first; UserError if the mesh does not divide it.
    """
    shards = data_shard(mesh).count
    scenes = len(jax.tree.leaves(batch)[0]) * shards
    input_views = batch.inputs.images.shape[1] if isinstance(batch, Batch) else 0
    check_batch(mesh, "a batch", scenes, input_views)

    def put(leaf: np.ndarray, sharding: NamedSharding) -> jax.Array:
        shape = (leaf.shape[0] * shards, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

    return jax.tree.map(put, batch, batch_shardings(mesh, batch))
