"""The mesh of devices, and where arrays live on it.

Sharding is decided here and nowhere else. The mesh has explicit axes, so every array's sharding is
part of its type and JAX carries it through the model by itself. Two axes:

- `data`: scenes of a batch;
- `fsdp`: scenes too, and also weights, optimizer state and EMA, cut along their input dimension.

One device is the (1, 1) mesh and the same code.
"""

import math
import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lvsm_jax.tree import map_named

_SCENES = P(("data", "fsdp"))


def simulate_cpu_devices(wanted: int, *batch_sizes: int) -> None:
    """Splits the CPU into devices, before JAX is first used; other backends are not touched.

    One device alone does not keep several cores busy.

    Args:
        wanted: number of devices; 0 takes one a core, as far as they divide the batches.
        batch_sizes: scenes of the batches that will be computed.
    """
    divisor = math.gcd(*batch_sizes)
    best = max(n for n in range(1, cpu_cores() + 1) if divisor % n == 0)
    jax.config.update("jax_num_cpu_devices", wanted or best)


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh over all devices; `data=-1` takes what `fsdp` leaves.

    Raises:
        ValueError: sizes that do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if data == -1 and fsdp > 0 and devices % fsdp == 0:
        data = devices // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != devices:
        raise ValueError(f"mesh of data={data} × fsdp={fsdp} does not fit {devices} devices")
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """The sharding of each leaf: kernels along their input dimension, the rest everywhere.

    Kernels whose input dimension the `fsdp` axis does not divide are held everywhere too.
    """

    def sharding(name: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if name.endswith("kernel") and leaf.shape[-2] % mesh.shape["fsdp"] == 0:
            return NamedSharding(mesh, P(*[None] * (leaf.ndim - 2), "fsdp", None))
        return NamedSharding(mesh, P())

    return map_named(sharding, abstract_state)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this process's rows of a host batch on its devices, as part of the global batch.

    Raises:
        ValueError: a number of scenes that the devices do not divide.
    """
    sharding = NamedSharding(mesh, _SCENES)
    local_devices = len(sharding.addressable_devices)
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % local_devices:
        raise ValueError(f"{rows} scenes of a batch do not divide over {local_devices} devices")
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
