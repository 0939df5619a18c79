"""Held-out worlds for evaluation: an evaluation set that is computed, with the truth beside it."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Int64

from lvsm_jax.batch import Batch
from lvsm_jax.common.config import WORLD_TARGETS, DataConfig, EvalConfig
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.scenes.placing import place_inputs
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.generate import Worlds, is_moving
from lvsm_jax.worlds.sampling import sample_at
from lvsm_jax.worlds.stream import Block, by_scene, render
from lvsm_jax.worlds.visibility import count_seen

SEED = 0  # whatever `run.seed` is, so that runs compare

# Focal lengths of targets over those of their places on the path: wider, and longer.
LENSES = (0.7, 1.4)


@dataclasses.dataclass(frozen=True)
class Names:
    """The scene table: `key[row]` names a world."""

    key: np.ndarray


@dataclasses.dataclass(frozen=True)
class HeldOutWorlds:
    """The worlds of an evaluation; iterating gives all batches of this process, once.

    To be iterated under `jax.set_mesh`; each of several processes gets the worlds of its devices.
    Rows that fill up the last batch repeat the last world and have `valid` False.
    """

    block: Block
    evaluation: EvalConfig
    rows: Int64[np.ndarray, " s"]  # numbers of the worlds
    lens: float | None = None  # of targets, of `LENSES`: factor of focal lengths; None for 1
    # Renderings by block and worlds, shared by sets that show the same worlds otherwise.
    kept: dict[tuple, Worlds] | None = None

    @property
    def scenes(self) -> Names:
        """Names of all worlds up to the last."""
        return Names(np.array([f"world-{row:06d}" for row in range(int(self.rows.max()) + 1)]))

    @property
    def num_scenes(self) -> int:
        """Number of worlds that are evaluated, over all processes."""
        return len(self.rows)

    def some(self, positions: Sequence[int]) -> "HeldOutWorlds":
        """The worlds at these positions, in batches of the same size."""
        return dataclasses.replace(self, rows=self.rows[list(positions)])

    def __iter__(self) -> Iterator[Batch]:
        size = self.evaluation.batch_size
        inputs, targets = place_views(self.evaluation)
        block = self.block
        if self.lens is not None:
            first, number = block.views, WORLD_TARGETS * LENSES.index(self.lens)
            zooms = tuple((target, lens) for lens in LENSES for target in targets)
            block = dataclasses.replace(block, zooms=zooms)
            targets = tuple(range(first + number, first + number + WORLD_TARGETS))
        shown = inputs, targets
        for first in range(0, len(self.rows), size):
            places = np.arange(first, first + size)
            scenes = self.rows[np.minimum(places, len(self.rows) - 1)].astype(np.int32)
            made = self._render(block, scenes)
            normalization = self.evaluation.camera_normalization
            batch = _draw(shown, normalization, made, scenes, places < len(self.rows))
            yield jax.tree.map(host_rows, batch)

    def with_inputs(self, counts: Sequence[int]) -> Iterator[tuple[Batch, ...]]:
        """The same batches with each of these numbers of inputs, of worlds rendered once."""
        kept = {} if self.kept is None else self.kept
        shown = (dataclasses.replace(self.evaluation, num_inputs=count) for count in counts)
        sets = [dataclasses.replace(self, evaluation=one, kept=kept) for one in shown]
        return zip(*sets, strict=True)

    def _render(self, block: Block, scenes: Int32[np.ndarray, " b"]) -> Worlds:
        kept = {} if self.kept is None else self.kept
        which = block, *scenes.tolist()
        if which not in kept:
            kept[which] = render(block, "evaluation", SEED, scenes)
        return kept[which]


def open_worlds(
    data: DataConfig, worlds: WorldsConfig, evaluation: EvalConfig, max_scenes: int | None = None
) -> HeldOutWorlds:
    """`eval.worlds` held-out worlds, or fewer where `max_scenes` or `evaluation` say so."""
    limits = [limit for limit in (max_scenes, evaluation.max_scenes) if limit]
    count, side = min([evaluation.worlds, *limits]), data.image_height
    block = Block(worlds, evaluation.world_views, side, side, with_depth=True)
    return HeldOutWorlds(block, evaluation, np.arange(count))


Places = tuple[tuple[int, ...], tuple[int, ...]]


def place_views(evaluation: EvalConfig) -> Places:
    """Positions of inputs and targets on the path of `world_views` views.

    Targets lie in the middle of equal parts of the path; `place_inputs` takes of the other views.
    """
    views, count = evaluation.world_views, evaluation.num_inputs
    targets = ((np.arange(WORLD_TARGETS) + 0.5) * views / WORLD_TARGETS).astype(int)
    others = np.setdiff1d(np.arange(views), targets)
    inputs = place_inputs(others.tolist(), count, evaluation.world_inputs)
    return tuple(inputs), tuple(targets.tolist())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(
    shown: Places,
    camera_normalization: str,
    worlds: Worlds,
    scenes: Int32[Array, " s"],
    valid: Array,
) -> Batch:
    """The samples of an evaluation's batch, with how many inputs see each pixel of a target."""
    inputs, targets = map(jnp.array, shown)

    def on_device(rows: tuple[Worlds, Array, Array]) -> Batch:
        worlds, scenes, valid = rows

        def sample(world: Worlds, scene: Array) -> Batch:
            shown, moving = (world.images, world.cameras), is_moving(world)
            places = inputs, targets, camera_normalization
            return sample_at(*shown, scene, *places, moving=moving)

        def seen_from(chosen: Array) -> tuple[Array, Cameras, Array | None]:
            known = worlds.depth, worlds.cameras, worlds.ways
            return jax.tree.map(lambda x: x[:, chosen], known)

        batch = jax.vmap(sample)(worlds, scenes)
        *target, ways = seen_from(targets)
        seen = count_seen(*seen_from(inputs)[:2], *target, target_ways=ways)
        return dataclasses.replace(batch, valid=valid, seen=seen)

    return by_scene(on_device, (worlds, scenes, valid))


def host_rows(x: jax.Array) -> np.ndarray:
    """The rows that this process's devices hold, each once, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def about_worlds(worlds: HeldOutWorlds, evaluation: EvalConfig) -> dict[str, Any]:
    """What summary.json says about the worlds that a model was evaluated on."""
    inputs, targets = place_views(evaluation)
    return {
        "count": worlds.num_scenes,
        "seed": SEED,
        "views": evaluation.world_views,
        "inputs": evaluation.world_inputs,
        "input_positions": list(inputs),
        "target_positions": list(targets),
    }
