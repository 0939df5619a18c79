"""What training and evaluation steps are fed: typed pytrees of arrays.

Shapes use `b` scenes, `v` input views, `t` target views, `h w` pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lvsm_jax.common.tree import map_named
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel.mesh import SCENES, check_batch, cut, reader

# Fields are annotated Any, for a pytree also holds shapes, shardings and specs as leaves.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Views:
    """Photographs of several scenes with their cameras; a pytree of NumPy or JAX arrays.

    Attributes:
        images: uint8 `[b, v, h, w, 3]`; divide by 255 on the device.
        cameras: c2w float32 `[b, v, 4, 4]` in the scene frame, fxfycxcy float32 `[b, v, 4]` in
            pixels of `images`.
        frame: int32 `[b, v]`, positions in the clip.
    """

    images: Any
    cameras: Cameras
    frame: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Input and target views of several scenes; a pytree of NumPy or JAX arrays.

    Attributes:
        inputs: the views the model sees.
        targets: the views it is to render.
        scene: int32 `[b]`, rows of the scene table.
        valid: bool `[b]`, False where a row only fills the last batch of an evaluation.
        replaced: int32 `[b]`, samples with a bad frame that were drawn in vain before this one.
    """

    inputs: Views
    targets: Views
    scene: Any
    valid: Any
    replaced: Any


def to_batch(arrays: Mapping[str, Any]) -> Batch:
    """Makes a Batch of the nested dict of arrays that worker processes send."""
    return Batch(
        inputs=_to_views(arrays["inputs"]),
        targets=_to_views(arrays["targets"]),
        scene=arrays["scene"],
        valid=arrays["valid"],
        replaced=arrays["replaced"],
    )


def _to_views(arrays: Mapping[str, np.ndarray]) -> Views:
    cameras = Cameras(arrays["c2w"], arrays["fxfycxcy"])
    return Views(arrays["images"], cameras, arrays["frame"])


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
    """The sharding of each leaf of an `lvsm_jax.batch.Batch`, or of a part of one.

    Scenes first. Input views go over `view`, and so do targets where it divides them; where it
    does not, its devices all compute all targets.
    """
    views = mesh.shape["view"]

    def sharding(name: str, leaf: Any) -> NamedSharding:
        part = name.partition(".")[0]
        spread = part == "inputs" or (part == "targets" and leaf.shape[1] % views == 0)
        axes = (SCENES, "view") if spread else (SCENES,)
        return NamedSharding(mesh, cut(*axes, mesh=mesh))

    return map_named(sharding, batch)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this process's scenes (see `reader`) on its devices, as part of the global batch.

    Raises:
        ValueError: scenes or input views that the mesh does not divide.
    """
    _, readers = reader(mesh)

    def put(name: str, leaf: np.ndarray, sharding: NamedSharding) -> jax.Array:
        shape = (leaf.shape[0] * readers, *leaf.shape[1:])
        is_input = name.startswith("inputs.")
        check_batch(mesh, "a batch", shape[0], leaf.shape[1] if is_input else 0)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

    return map_named(put, batch, batch_shardings(mesh, batch))
