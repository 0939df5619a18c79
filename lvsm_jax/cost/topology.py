"""The training step compiled for accelerators that are not here, and what it needs at least."""

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lvsm_jax.batch import Batch, Views, batch_shardings
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.cost import memory
from lvsm_jax.cost.chips import GPUS, Chip, chip_of
from lvsm_jax.cost.gpus import gpu_devices, hosts_and_gpus
from lvsm_jax.models.layers import REMAT_POLICIES
from lvsm_jax.parallel.mesh import MeshConfig, check_batch, make_mesh
from lvsm_jax.training.frozen_networks import abstract_frozen
from lvsm_jax.training.train_state import TrainingConfig, abstract_state, compiled_step

USABLE = 0.95  # share of a chip's memory that a program gets beside runtime and fragmentation
_LAYER_OVERHEAD = 1.2  # peak of one layer's backward pass over its saved activations
# Keeps libtpu from looking for a TPU.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilations at a time
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled."""

    topology: str  # such as `v5e:8x8`, or `h100:1x8` of hosts and GPUs of each
    mesh: MeshConfig  # of its chips
    training: TrainingConfig
    data: DataConfig
    batch: int  # scenes of a step, over all chips
    render: bool = False  # whether to compile the forward pass alone

    @property
    def chip(self) -> Chip:
        """The published numbers of its chips."""
        return chip_of(self.topology)

    @property
    def devices_of_host(self) -> int:
        """Chips that are joined by the fast links; all of a TPU's."""
        return hosts_and_gpus(self.topology)[1] if _is_gpu(self.topology) else 2**31

    @property
    def scene(self) -> dict[str, int]:
        """Views and size, as `cost.flops` and `cost.memory` take them."""
        views, side = max(self.data.possible_inputs), self.data.image_height
        return {"views": views, "targets": self.data.num_targets, "height": side, "width": side}


def _is_gpu(topology: str) -> bool:
    return topology.partition(":")[0] in GPUS


def topology_mesh(topology: str, config: MeshConfig) -> Mesh:
    """A mesh of the chips of a topology, none of which need be here.

    Raises UserError for no such topology, a mesh that does not fit it, or no compiler for it.
    """
    chip = chip_of(topology)
    if _is_gpu(topology):
        return make_mesh(config, gpu_devices(topology))
    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if chip.megacore else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # the plugin's errors have no type of their own
        reason = str(error).splitlines()[0]
        message = f"the TPU compiler is not here: pip install 'lvsm_jax[tpu]' ({reason})"
        if "INVALID_ARGUMENT" in str(error):
            message = f"topology {topology!r}: {reason}"
        raise UserError(message) from error
    return make_mesh(config, found.devices)


def compile_case(case: Case, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles the training step, or the forward pass, for the chips of the mesh.

    Raises UserError for a batch that the mesh does not divide; the compiler's JaxRuntimeError, such
    as for too little memory.
    """
    training = case.training
    microbatch = case.batch // (1 if case.render else training.grad_accumulation)
    check_batch(mesh, f"batch {case.batch}", microbatch, case.scene["views"])
    timed = training.model.time_channel
    batch = abstract_batch(case.data, case.batch, mesh, timed=timed)
    with jax.set_mesh(mesh):
        state = abstract_state(training, mesh)
        if case.render:
            images = batch.inputs.images.update(dtype=jnp.float32)
            views = images, batch.inputs.cameras, batch.targets.cameras
            render = jax.jit(lambda model, *views: model(*views))
            return render.lower(state.model, *views).compile()
        dtype = training.model.dtype
        frozen = abstract_frozen(training.loss, training.repa, dtype=dtype, mesh=mesh)
        return compiled_step(training, mesh).lower(state, batch, frozen).compile()


def abstract_batch(data: DataConfig, scenes: int, mesh: Mesh, *, timed: bool = False) -> Batch:
    """Shapes, dtypes and shardings of a training batch, `timed` with the time of each view."""
    shape, side = jax.ShapeDtypeStruct, data.image_height

    def views(count: int) -> Views:
        images, cameras = memory.abstract_views(scenes, count, side, side, timed=timed)
        return Views(images.update(dtype=jnp.uint8), cameras, shape((scenes, count), jnp.int32))

    rows = (shape((scenes,), dtype) for dtype in (jnp.int32, jnp.bool_, jnp.int32))
    batch = Batch(views(max(data.possible_inputs)), views(data.num_targets), *rows)
    shardings = batch_shardings(mesh, batch)
    return jax.tree.map(lambda leaf, to: leaf.update(sharding=to), batch, shardings)


def least_sent(case: Case, mesh: Mesh) -> dict[str, float]:
    """The fewest bytes that each chip has to send in a step, by what they are for.

    For each microbatch, sharded weights are gathered once in the forward and once in the backward
    pass, and their gradients reduced once, all in the model's dtype. No gradient goes back through
    the tokenizers, whose weights are gathered once.

    Over `view`, queries and results of every cross-attention travel in the forward pass; queries,
    gradients and the queries' gradients in the backward pass.
    """
    model, training = case.training.model, not case.render
    views, width = mesh.shape["view"], jnp.dtype(model.dtype).itemsize
    microbatches = case.training.grad_accumulation if training else 1
    gathers = reductions = 0.0
    for name, leaf in named_leaves(abstract_state(case.training, mesh).model).items():
        shards = mesh.shape["fsdp"] if "fsdp" in leaf.sharding.spec else 1
        copies, size = mesh.size // shards, leaf.size * width
        share = size / shards
        passes = 2 if training and "tokenizer" not in name else 1
        gathers += passes * (size - share)
        reductions += size - share
        reductions += 2 * share * (copies - 1) / copies
    sent = {"weights": microbatches * gathers, "gradients": microbatches * reductions * training}
    if views > 1:
        scene = case.scene
        tokens = scene["targets"] * scene["height"] * scene["width"] // model.patch_size**2
        scenes = case.batch * views / mesh.size
        layers = model.num_layers * getattr(model, "num_cross_attentions", 1)
        once = scenes * tokens * model.width * width * (views - 1) / views
        sent["views"] = layers * once * (5 if training else 2)
    return sent


def advice(case: Case, mesh: Mesh) -> dict[str, Any]:
    """How many scenes fit a chip at once under each remat policy, and which policy to choose.

    Counted, not compiled: the state and its gradients, for each scene what a forward pass keeps
    (`cost.memory.activation_bytes`), and what the backward pass of one layer makes. The choice
    recomputes as little as fits without `grad_accumulation`; where nothing does, it takes that.

    `remat` and `grad_accumulation` are None where not even one scene fits.
    """
    state = abstract_state(case.training, mesh)
    free = USABLE * case.chip.hbm - _bytes_a_chip(state) - _bytes_a_chip(state.model)
    # Devices of the `view` axis share a scene.
    scenes = case.batch * mesh.shape["view"] / mesh.size
    fitting, kept = {}, {}
    for policy in REMAT_POLICIES:
        model = dataclasses.replace(case.training.model, remat=policy)
        kept[policy] = memory.activation_bytes(model, **case.scene).scene / mesh.shape["view"]
        layer = _LAYER_OVERHEAD * kept["none"] / model.num_layers
        fitting[policy] = max(0, math.floor(free / (kept[policy] + layer)))
    enough = ((policy, 1) for policy in REMAT_POLICIES if fitting[policy] >= scenes)
    chosen, microbatches = next(enough, (None, None))
    if chosen is None and (most := fitting["full"]):
        chosen, counts = "full", range(1, math.ceil(scenes) + 1)
        microbatches = next(n for n in counts if scenes % n == 0 and scenes / n <= most)
    return {"scenes_at_once": fitting, "remat": chosen, "grad_accumulation": microbatches}


def _bytes_a_chip(tree: Any) -> int:
    shapes = ((leaf.sharding.shard_shape(leaf.shape), leaf) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in shapes)
