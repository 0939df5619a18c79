"""GPUs that are not here, for XLA's compiler to compile for: it runs on any CPU.

It chooses no matmul kernels by trial, for which a GPU is needed: those of a GPU may be others than
the ones that are seen here. Shapes, passes over memory and collectives are the same.
"""

import re
from typing import Any

from lvsm_jax.common.errors import UserError
from lvsm_jax.cost.chips import GPUS

# Of `xla::GpuTargetConfigProto`, in its text form; sizes as CUDA reports them of the device.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block_optin: {shared_memory_optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""
_DEVICES = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3", "cores": 132, "fpus": 128, "l2_cache": 52_428_800,
        "clock": 1.98, "major": 9, "shared_memory": 233_472, "shared_memory_optin": 232_448,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB", "cores": 108, "fpus": 64, "l2_cache": 41_943_040,
        "clock": 1.41, "major": 8, "shared_memory": 167_936, "shared_memory_optin": 166_912,
    },
}  # fmt: skip


def hosts_and_gpus(topology: str) -> tuple[int, int]:
    """Hosts, and GPUs of each, of a topology such as `a100:8x8`; UserError for another form."""
    found = re.fullmatch(r"\w+:([1-9]\d{0,4})x([1-9]\d{0,2})", topology)
    if not found:
        raise UserError(f"topology {topology!r}: expected hosts x GPUs of each, as in h100:1x8")
    return int(found[1]), int(found[2])


def gpu_devices(topology: str) -> list[Any]:
    """The devices of a topology; UserError for another form, or no GPU compiler."""
    hosts, gpus = hosts_and_gpus(topology)
    from jax.experimental import topologies

    name = topology.partition(":")[0]
    chip = GPUS[name]
    target = _TARGET.format(bandwidth=int(chip.hbm_bandwidth), memory=chip.hbm, **_DEVICES[name])
    try:
        found = topologies.get_topology_desc(
            "", "cuda", target_config=target, topology=f"1x{hosts}x{gpus}"
        )
    except Exception as error:  # the plugin's errors have no type of their own
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the GPU compiler is not here: pip install 'lvsm_jax[cuda]' ({reason})"
        ) from error
    return list(found.devices)
