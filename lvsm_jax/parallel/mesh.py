"""The mesh of devices, and how arrays are sharded over it.

The axes are explicit: every array's sharding is part of its type, and JAX carries it through the
model. Three axes:

- `data`: scenes of a batch;
- `fsdp`: scenes too, and also weights, optimizer state and EMA, cut along their input dimension;
- `view`: the input views of a scene, and where it divides them also its targets.

One device is the (1, 1, 1) mesh and the same code.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import map_named

AXES = ("data", "fsdp", "view")
SCENES = ("data", "fsdp")

Axes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; their product is the number of devices.

    Attributes:
        data: replicas of the weights; -1 takes the devices that the others leave.
        fsdp: devices over which weights, optimizer state and EMA are cut. Scenes are dealt to
            `data` × `fsdp`.
        view: devices over which the input views of a scene are spread (context parallelism).
    """

    data: int = -1
    fsdp: int = 1
    view: int = 1

    def __post_init__(self):
        check_at_least("mesh", self, data=-1 if self.data == -1 else 1, fsdp=1, view=1)


def simulate_cpu_devices(
    wanted: int, config: MeshConfig, *batch_sizes: int, processes: int = 1
) -> None:
    """Splits the CPU into simulated devices, before JAX is first used; no other backend.

    One device alone does not keep several cores busy. This process gets the `wanted` ones, or for 0
    what the mesh needs, and with `data=-1` one for each core, as far as they divide the batches
    (`batch_sizes` in scenes) and the `processes` that share the mesh.
    """
    replicas, scenes, inner = config.data, math.gcd(*batch_sizes), config.fsdp * config.view
    if replicas == -1:
        most = cpu_cores() * processes // inner
        fitting = (n for n in range(1, most + 1) if n * inner % processes == 0)
        replicas = max((n for n in fitting if scenes % (n * config.fsdp) == 0), default=1)
    devices = wanted or math.ceil(replicas * inner / processes)
    jax.config.update("jax_num_cpu_devices", devices)
    # XLA's threads. A device may wait in several collectives at once, and with a thread for each
    # device all could wait for one that finds no thread.
    if devices > 1:
        os.environ.setdefault("NPROC", str(4 * devices))


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_mesh(
    config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over the devices, by default all; UserError if its sizes do not multiply to them."""
    count = jax.device_count() if devices is None else len(devices)
    data, inner = config.data, config.fsdp * config.view
    if data == -1 and count % inner == 0:
        data = count // inner
    sizes = data, config.fsdp, config.view
    name = f"mesh of data={data} × fsdp={config.fsdp} × view={config.view}"
    if data * inner != count:
        raise UserError(f"{name} does not fit {count} devices")
    try:
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)
    except NotImplementedError as error:
        raise UserError(
            f"{name}: on these chips each size is a product of sides of their torus ({error})"
        ) from error


def view_devices() -> int:
    """Devices along the `view` axis of the mesh that is set; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["view"]


def spec(*axes: Axes, mesh: Mesh | AbstractMesh | None = None) -> P | None:
    """The PartitionSpec of an array with these mesh axes for each dimension; None without a mesh.

    The mesh is by default the one that is set. Axes of size one are left out: some operations of
    JAX drop such names and others keep them.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        return None

    def named(axes: Axes) -> Axes:
        several = axes if isinstance(axes, tuple) else (axes,)
        left = tuple(axis for axis in several if axis is not None and mesh.shape[axis] > 1)
        return left if len(left) > 1 else next(iter(left), None)

    return P(*map(named, axes))


def axes_of(x: Array) -> tuple[Axes, ...]:
    """For each dimension of an array the mesh axes that cut it; None where none does."""
    return tuple(jax.typeof(x).sharding.spec)


def sharded_like(x: Array, *axes: Axes) -> NamedSharding | None:
    """On the mesh of `x`, the sharding of an array that these axes cut; None without a mesh."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else sharding.update(spec=P(*axes))


def reshard(tree: Any, *axes: Axes) -> Any:
    """Arrays cut along these axes of the mesh that is set, inside `jax.jit` too; see `spec`."""
    wanted = spec(*axes)
    return tree if wanted is None else jax.tree.map(lambda x: jax.reshard(x, wanted), tree)


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function computed by each device on its own shards, under `jax.shard_map`.

    For fused kernels, convolutions and loops, which know nothing of sharding. The specs are pytrees
    of PartitionSpecs (or of None, see `spec`). Where no axis cuts any argument or result, as
    without a mesh, it is the function itself.
    """
    leaves = jax.tree.leaves((in_specs, out_specs), is_leaf=lambda x: isinstance(x, P))
    if not any(any(leaf) for leaf in leaves):
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def scene_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many shards the scenes of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh | AbstractMesh, name: str, scenes: int, input_views: int) -> None:
    """Raises UserError, with the batch's name, unless the mesh divides a batch of this size."""
    if mesh.empty:
        return
    for what, number, axes, shards in (
        ("scenes", scenes, "mesh.data × mesh.fsdp", scene_shards(mesh)),
        ("input views", input_views, "mesh.view", mesh.shape["view"]),
    ):
        if number % shards:
            raise UserError(f"{name}: {number} {what} do not divide over {axes} = {shards}")


class DataShard(NamedTuple):
    """The scenes of each batch that a process reads: shard `index` of `count` equal ones."""

    index: int
    count: int


def data_shard(mesh: Mesh) -> DataShard:
    """This process's shard of the data; the same in processes whose devices share their scenes.

    Raises UserError if processes share some scenes and not others.
    """
    scenes_of: dict[int, set[int]] = {}
    for position, device in np.ndenumerate(mesh.devices):
        scenes = position[0] * mesh.shape["fsdp"] + position[1]
        scenes_of.setdefault(device.process_index, set()).add(scenes)
    shards = sorted({tuple(sorted(scenes)) for scenes in scenes_of.values()})
    if sum(map(len, shards)) != scene_shards(mesh):
        raise UserError(
            f"mesh of {dict(mesh.shape)}: processes share some scenes and not others; choose a "
            "mesh.view that divides the devices of a process, or is divided by them"
        )
    own = tuple(sorted(scenes_of[jax.process_index()]))
    return DataShard(shards.index(own), len(shards))


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Kernels are cut along their input dimension if `fsdp` divides it; the rest is replicated."""

    def sharding(name: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if name.endswith("kernel") and leaf.shape[-2] % mesh.shape["fsdp"] == 0:
            return NamedSharding(mesh, P(*[None] * (leaf.ndim - 2), "fsdp", None))
        return NamedSharding(mesh, P())

    return map_named(sharding, abstract_state)


def device_put(tree: Any, shardings: Any) -> Any:
    """Arrays of which every process has the whole, on the devices that the shardings say."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Arrays of which every process has the whole, on every device."""
    return device_put(tree, jax.tree.map(lambda _: NamedSharding(mesh, P()), tree))
