"""What a program is compiled for."""

import jax


def platform_of(mesh: jax.sharding.AbstractMesh) -> str:
    """`cpu`, `gpu` or `tpu`: of a mesh, whose devices need not be here (`programs.aot`).

    Without one it is that of the devices that are.
    """
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform
