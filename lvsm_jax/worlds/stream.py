"""Training batches of worlds, made where they are trained on: no disk, no host in the way.

A batch is a function of seed and step alone: the same on any mesh, and after resuming. Each device
renders its own scenes, and each of several processes those of its devices. Nothing waits for a
batch: JAX dispatches its rendering and goes on, a step ahead of the device.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Key

from lvsm_jax.batch import Batch, batch_shardings
from lvsm_jax.common.config import DataConfig
from lvsm_jax.parallel.mesh import SCENES, check_batch, per_device, reshard, spec
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.generate import Worlds, is_moving, make_worlds
from lvsm_jax.worlds.rig import make_objects
from lvsm_jax.worlds.sampling import Draw, draw_sample

# Worlds of different purposes have nothing in common, whatever their seeds.
PURPOSES = ("training", "evaluation", "train", "test")


@dataclasses.dataclass(frozen=True)
class Block:
    """What renders a block of worlds; hashable, as it is a program of its own."""

    config: WorldsConfig
    views: int
    height: int
    width: int
    with_depth: bool = False
    on_rig: bool = False  # objects with transparency, from all views of a rig
    zooms: tuple[tuple[int, float], ...] = ()  # further pictures, see `generate.make_worlds`


def world_batches(
    data: DataConfig,
    worlds: WorldsConfig,
    *,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    start_step: int = 0,
    with_depth: bool = False,
) -> Iterator[Batch]:
    """Batches without end of `batch_size` worlds each, on the devices of the mesh.

    Steps count worlds' batches alone. As many consecutive ones as `worlds.steps_per_world` says
    show the same worlds, with other inputs and targets. To be iterated under `jax.set_mesh(mesh)`.
    `with_depth` the batches have the depth of all views, and say which pixels move. UserError where
    the mesh does not divide the batches.
    """
    data.check_training()
    for num_inputs in data.possible_inputs:
        check_batch(mesh, "a batch of worlds", batch_size, num_inputs)
    size = data.image_height
    block = Block(worlds, data.num_views, size, size, with_depth)
    return _batches(block, data, batch_size, seed, mesh, start_step)


def _batches(
    block: Block, data: DataConfig, batch_size: int, seed: int, mesh: Mesh, start_step: int
) -> Iterator[Batch]:
    config, shown, made = block.config, None, None
    for step in itertools.count(start_step):
        number = step // config.steps_per_world
        scenes = number * batch_size + np.arange(batch_size, dtype=np.int32)
        if shown != number:
            level = complexity(config, number * config.steps_per_world)
            shown, made = number, render(block, "training", seed, scenes, level)
        draw = Draw.of(data, config.input_weights, num_inputs(data, seed, step))
        yield draw_batch(draw, mesh, made, scenes, np.uint32(seed), np.int32(step))


def num_inputs(data: DataConfig, seed: int, step: int) -> int:
    """Inputs of a step, as `input_pipeline.sampling.step_choices` draws them."""
    counts = data.possible_inputs
    return counts[np.random.default_rng([seed, step]).integers(len(counts))]


def complexity(config: WorldsConfig, step: int) -> float:
    """How complex worlds are at a step, from 0 to 1."""
    return min(1.0, step / config.complexity_steps) if config.complexity_steps else 1.0


def render(
    block: Block,
    purpose: str,
    seed: int,
    scenes: Int32[np.ndarray, " s"],
    complexity: float = 1.0,
) -> Worlds:
    """Worlds by their numbers, each on the device that has its place on the mesh that is set.

    A world depends on purpose, seed and its number alone. Without `with_depth` its depth is None.
    """
    which = np.int32(PURPOSES.index(purpose)), np.uint32(seed)
    return render_block(block, *which, np.asarray(scenes, np.int32), np.float32(complexity))


@functools.partial(jax.jit, static_argnums=0)
def render_block(
    block: Block,
    purpose: Int32[Array, ""],
    seed: Array,
    scenes: Int32[Array, " s"],
    complexity: Float[Array, ""],
) -> Worlds:
    """The same, for arrays; `purpose` is a position in `PURPOSES`."""

    def on_device(scenes: Int32[Array, " s"], *which: Array) -> Worlds:
        *which, complexity = which
        size = {"height": block.height, "width": block.width}
        keys = jax.vmap(functools.partial(_key, *which))(scenes)
        if block.on_rig:
            return make_objects(keys, block.config, **size, complexity=complexity)
        path = {"views": block.views, "zooms": block.zooms}
        made = make_worlds(keys, block.config, **path, **size, complexity=complexity)
        return made if block.with_depth else dataclasses.replace(made, depth=None, ways=None)

    return by_scene(on_device, scenes, purpose, seed, complexity)


def _key(purpose: Int32[Array, ""], seed: Array, *numbers: Int32[Array, ""]) -> Key[Array, ""]:
    """A key of its own for each purpose, seed and numbers."""
    return functools.reduce(jax.random.fold_in, (purpose, *numbers), jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_batch(
    draw: Draw,
    mesh: Mesh,
    worlds: Worlds,
    scenes: Int32[Array, " s"],
    seed: Array,
    step: Int32[Array, ""],
) -> Batch:
    """The samples of a training step, of worlds that are rendered; sharded as a Batch is."""
    batch = draw_samples(draw, worlds, scenes, seed, step)
    return jax.tree.map(jax.reshard, batch, batch_shardings(mesh, batch))


def draw_samples(
    draw: Draw, worlds: Worlds, scenes: Int32[Array, " s"], seed: Array, step: Int32[Array, ""]
) -> Batch:
    """The same, sharded by scene alone."""

    def on_device(rows: tuple[Worlds, Array], seed: Array, step: Array) -> Batch:
        def sample(world: Worlds, scene: Int32[Array, ""]) -> Batch:
            key = _key(jnp.int32(len(PURPOSES)), seed, step, scene)
            shown = world.images, world.cameras, world.depth
            return draw_sample(key, *shown, scene, draw, is_moving(world))

        return jax.vmap(sample)(*rows)

    return by_scene(on_device, (worlds, scenes), seed, step)


def by_scene(function: Any, rows: Any, *same: Array) -> Any:
    """The function of rows, a scene each, computed by each device on its own."""
    by_scene, whole = spec(SCENES), spec()
    function = per_device(function, (by_scene, *[whole] * len(same)), by_scene)
    return function(reshard(rows, SCENES), *same)
