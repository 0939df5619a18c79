"""Which views of a world make a sample, and in which scene frame. Pure functions of a key.

Letters: `n` views of a world, ordered along the camera's path, `v` inputs, `t` targets. A target is
never an input: a head that may copy would learn to, where the answer is among the inputs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from lvsm_jax.batch import Batch, Views
from lvsm_jax.common.config import DataConfig
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.worlds.config import INPUTS
from lvsm_jax.worlds.scene_frame import multiply, normalize_cameras, place_cameras


@dataclasses.dataclass(frozen=True)
class Draw:
    """What samples of a step have in common; hashable, as each is a program of its own."""

    num_inputs: int
    num_targets: int
    input_weights: tuple[float, ...]
    camera_normalization: str
    scale_jitter: float
    frame_turn: float

    @classmethod
    def of(cls, data: DataConfig, input_weights: tuple[float, ...], num_inputs: int) -> "Draw":
        """What a config says, with so many inputs."""
        names = ("num_targets", "camera_normalization", "scale_jitter", "frame_turn")
        same = {name: getattr(data, name) for name in names}
        return cls(num_inputs, input_weights=tuple(input_weights), **same)


def draw_views(
    key: Key[Array, ""], num_views: int, draw: Draw
) -> tuple[Int32[Array, " v"], Int32[Array, " t"]]:
    """Positions on the path of a sample's inputs and targets, each in order, none in both.

    Inputs are `spread` (one from each of `v` stretches of equal length), `contiguous` (neighbours)
    or `random`; targets are any of the others.
    """
    place, spread, first, order, targets = jax.random.split(key, 5)
    positions, count = jnp.arange(num_views), draw.num_inputs
    ends = np.arange(count + 1) * num_views // count
    stretches = jnp.asarray(np.diff(ends))
    shares = jax.random.uniform(spread, (count,))
    one_each = jnp.asarray(ends[:-1]) + jnp.minimum((shares * stretches).astype(int), stretches - 1)
    start = jax.random.randint(first, (), 0, num_views - count + 1)
    weights = jnp.asarray(draw.input_weights)
    is_input = jnp.stack(
        [
            (positions[:, None] == one_each).any(-1),
            (positions >= start) & (positions < start + count),
            jax.random.permutation(order, num_views) < count,
        ]
    )[jax.random.choice(place, len(INPUTS), p=weights / weights.sum())]
    inputs = jnp.argsort(jnp.where(is_input, positions, num_views + positions))[:count]
    others = jnp.where(is_input, 2.0, jax.random.uniform(targets, (num_views,)))
    return inputs, jnp.sort(jnp.argsort(others)[: draw.num_targets])


def draw_reframing(
    key: Key[Array, ""], draw: Draw
) -> tuple[Float[Array, ""] | float, Float[Array, "3 3"] | None]:
    """Factor and rotation of a sample's scene frame, by `data.scale_jitter` and `frame_turn`."""
    if draw.scale_jitter == 1 and not draw.frame_turn:
        return 1.0, None
    scale, angle, axis = jax.random.split(key, 3)
    factor = draw.scale_jitter ** jax.random.uniform(scale, (), minval=-1.0)
    angle = jnp.deg2rad(draw.frame_turn) * jax.random.uniform(angle, ())
    axis = jax.random.normal(axis, (3,))  # of uniform direction
    cross = jnp.cross(axis / jnp.linalg.norm(axis), jnp.eye(3)).T
    turn = jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * multiply(cross, cross)
    return factor, turn  # Rodrigues


def draw_sample(
    key: Key[Array, ""],
    images: Array,
    cameras: Cameras,
    depth: Array | None,
    scene: Int32[Array, ""],
    draw: Draw,
    moving: Array | None = None,
) -> Batch:
    """A training sample of one world, without the leading axis of a Batch.

    `images` are `[n, h, w, 3]`, `cameras` those of all views, and `depth` and what is `moving`
    theirs `[n, h, w]`; None leaves them out of the Batch.
    """
    views, reframing = jax.random.split(key)
    positions = draw_views(views, len(images), draw)
    placed = draw_reframing(reframing, draw)
    normalization = draw.camera_normalization
    return sample_at(images, cameras, scene, *positions, normalization, placed, depth, moving)


def sample_at(
    images: Array,
    cameras: Cameras,
    scene: Int32[Array, ""],
    inputs: Int32[Array, " v"],
    targets: Int32[Array, " t"],
    camera_normalization: str,
    reframing: tuple = (1.0, None),
    depth: Array | None = None,
    moving: Array | None = None,
) -> Batch:
    """The sample of these inputs and targets; see `draw_sample`.

    With `all_views` the scene frame is that of the cameras of inputs and targets, with `none` the
    world's own.
    """
    if camera_normalization == "none":
        c2w, scale = place_cameras(cameras.c2w, *reframing)
        return _sample(images, c2w, scale, cameras, scene, inputs, targets, depth, moving)
    of_frame = [inputs, targets] if camera_normalization == "all_views" else [inputs]
    fitted = cameras.c2w[jnp.concatenate(of_frame)]
    c2w, scale = normalize_cameras(fitted, cameras.c2w, *reframing)
    return _sample(images, c2w, scale, cameras, scene, inputs, targets, depth, moving)


def _sample(images, c2w, scale, cameras, scene, inputs, targets, depth, moving) -> Batch:
    def select(chosen: Int32[Array, " m"]) -> Views:
        placed = dataclasses.replace(cameras, c2w=c2w)
        shown, own_moving = jax.tree.map(lambda x: x[chosen], (placed, moving))
        own_depth = None if depth is None else depth[chosen] * scale
        return Views(images[chosen], shown, chosen.astype(jnp.int32), own_depth, own_moving)

    one = jnp.ones((), jnp.int32)
    return Batch(select(inputs), select(targets), scene.astype(jnp.int32), one > 0, one * 0)
