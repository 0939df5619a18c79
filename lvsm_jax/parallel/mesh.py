"""The mesh of devices, and where arrays live on it.

Sharding is decided here and nowhere else. The mesh has explicit axes, so every array's sharding is
part of its type and JAX carries it through the model by itself. Three axes:

- `data`: scenes of a batch;
- `fsdp`: scenes too, and also weights, optimizer state and EMA, cut along their input dimension;
- `view`: the input views of a scene, and where it divides them also its targets.

One device is the (1, 1, 1) mesh and the same code.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import map_named

AXES = ("data", "fsdp", "view")
SCENES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many ways the work is cut; the product is the number of devices.

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
        for name in AXES:
            value = getattr(self, name)
            if value < 1 and not (name == "data" and value == -1):
                raise UserError(f"mesh.{name} is {value}, expected at least 1")


def simulate_cpu_devices(
    wanted: int, config: MeshConfig, *batch_sizes: int, processes: int = 1
) -> None:
    """Splits the CPU into devices, before JAX is first used; other backends are not touched.

    One device alone does not keep several cores busy.

    Args:
        wanted: number of devices; 0 takes what the mesh asks for, and with `data=-1` one a core, as
            far as they divide the batches.
        config: of the mesh.
        batch_sizes: scenes of the batches that will be computed.
        processes: that share the mesh; the devices are those of each.
    """
    replicas, scenes, inner = config.data, math.gcd(*batch_sizes), config.fsdp * config.view
    if replicas == -1:
        fitting = (
            n
            for n in range(1, cpu_cores() * processes // inner + 1)
            if scenes % (n * config.fsdp) == 0 and n * inner % processes == 0
        )
        replicas = max(fitting, default=1)
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
    config: MeshConfig = MeshConfig(),
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The mesh of these sizes over the devices; by default over all.

    Raises:
        ValueError: sizes that do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    data, inner = config.data, config.fsdp * config.view
    if data == -1 and count % inner == 0:
        data = count // inner
    if data * inner != count:
        raise UserError(
            f"mesh of data={data} × fsdp={config.fsdp} × view={config.view} does not fit {count} "
            "devices"
        )
    sizes = (data, config.fsdp, config.view)
    try:
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)
    except NotImplementedError as error:
        raise UserError(
            f"mesh of data={data} × fsdp={config.fsdp} × view={config.view}: on these chips each "
            f"size has to be a product of sides of their torus ({error})"
        ) from error


def in_use() -> bool:
    """Whether there is a mesh around, set by `jax.set_mesh`."""
    return not jax.sharding.get_abstract_mesh().empty


def view_parts() -> int:
    """Devices along the `view` axis of the mesh that is in use; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape["view"] if in_use() else 1


def cut(*axes: Any, mesh: Mesh | AbstractMesh | None = None) -> P | None:
    """How dimensions are cut by the mesh (default: that in use); None without one.

    Axes of size one are not named: some operations of JAX drop such names and others keep them.

    Args:
        axes: for each dimension an axis, several, or None.
        mesh: whose axes they are.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        return None

    def named(axes: Any) -> Any:
        several = axes if isinstance(axes, tuple) else (axes,)
        left = tuple(axis for axis in several if axis is not None and mesh.shape[axis] > 1)
        return left if len(left) > 1 else next(iter(left), None)

    return P(*map(named, axes))


def put(tree: Any, *axes: Any) -> Any:
    """Arrays, inside `jax.jit` too, with these dimensions cut by the mesh that is in use."""
    spec = cut(*axes)
    return tree if spec is None else jax.tree.map(lambda x: jax.reshard(x, spec), tree)


def scene_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the scenes of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh | AbstractMesh, name: str, scenes: int, input_views: int) -> None:
    """Raises ValueError, with the batch's name, unless the mesh divides a batch of this size."""
    if mesh.empty:
        return
    for what, number, axes, parts in (
        ("scenes", scenes, "mesh.data × mesh.fsdp", scene_parts(mesh)),
        ("input views", input_views, "mesh.view", mesh.shape["view"]),
    ):
        if number % parts:
            raise UserError(f"{name}: {number} {what} do not divide over {axes} = {parts}")


def reader(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch's scenes this process reads, and of how many.

    Processes whose devices share scenes (the `view` axis goes through all of them) read the same.

    Raises:
        ValueError: processes whose devices share some scenes and not others.
    """
    parts: dict[int, set[int]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        scenes = place[0] * mesh.shape["fsdp"] + place[1]
        parts.setdefault(device.process_index, set()).add(scenes)
    readers = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(len(part) for part in readers) != scene_parts(mesh):
        raise UserError(
            f"mesh of {dict(mesh.shape)}: processes share some scenes and not others; choose a "
            "mesh.view that divides the devices of a process, or is divided by them"
        )
    return readers.index(tuple(sorted(parts[jax.process_index()]))), len(readers)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """The sharding of each leaf: kernels along their input dimension, the rest everywhere.

    Kernels whose input dimension the `fsdp` axis does not divide are held everywhere too.
    """

    def sharding(name: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if name.endswith("kernel") and leaf.shape[-2] % mesh.shape["fsdp"] == 0:
            return NamedSharding(mesh, P(*[None] * (leaf.ndim - 2), "fsdp", None))
        return NamedSharding(mesh, P())

    return map_named(sharding, abstract_state)


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every process has whole where they live on the mesh."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays that every process has on every device."""
    return place(tree, jax.tree.map(lambda _: NamedSharding(mesh, P()), tree))


def on_own_part(function: Callable[..., Array], weights: Any, *arrays: Array) -> Array:
    """`function(weights, *arrays)` computed by each device on its own scenes and views.

    For networks whose operations (convolutions, pooling) know nothing of sharding.

    Args:
        function: of arrays `[b, v, ...]`, all cut alike, to one `[b, v, ...]`; no scene's or view's
            result depends on another.
        weights: pytree that is whole on every device.
        arrays: of the batch.
    """
    sharding = jax.typeof(arrays[0]).sharding
    if sharding.mesh.empty:
        return function(weights, *arrays)
    own = P(*sharding.spec[:2])
    specs = (P(), *(own for _ in arrays))
    return jax.shard_map(function, in_specs=specs, out_specs=own, check_vma=False)(weights, *arrays)
