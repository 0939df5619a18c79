"""Furniture: what pieces consist of, and where in a room they stand.

A piece is a handful of boxes in a frame of its own: x along its front, y down, z from its back to
its front. Part `(c, s, t, slot)` has half sizes `s × size + t`, and its middle at `c × (size -
half)`: so -1 and 1 are flush with the piece's sides, and `t` are thicknesses in metres, whatever
the piece's size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lvsm_jax.worlds.dice import Dice, yaw_rotations
from lvsm_jax.worlds.layout import make_solids
from lvsm_jax.worlds.solids import Solids

PARTS = 8  # of a piece, at most
TRIES = 16  # places that are tried for a piece
BODY, SOFT, ACCENT, FRONT = range(4)  # slots of materials


def _part(c, s, t=(0, 0, 0), slot=BODY):
    return (*c, *s, *t, slot)


def _legs(height, width=0.022, slot=BODY):
    """Four legs, `height` as a share of the piece's."""
    corners = [(x, 1, z) for x in (-1, 1) for z in (-1, 1)]
    return [_part(c, (0, height, 0), (width, -0.01, width), slot) for c in corners]


# Name: least and greatest half sizes in metres, whether it stands at a wall, how often, parts.
PIECES = {
    "table": (
        (0.45, 0.36, 0.35), (0.9, 0.39, 0.5), False, 1.2,
        [_part((0, -1, 0), (1, 0, 1), (0, 0.02, 0)),
         *_legs(0.97, 0.03)],
    ),
    "low table": (
        (0.35, 0.2, 0.3), (0.6, 0.25, 0.4), False, 0.8,
        [_part((0, -1, 0), (1, 0, 1), (0, 0.018, 0)),
         *_legs(0.95, 0.02, ACCENT),
         _part((0, 0.4, 0), (0.95, 0, 0.95), (0, 0.01, 0))],
    ),
    "desk": (
        (0.5, 0.36, 0.28), (0.8, 0.39, 0.38), True, 0.8,
        [_part((0, -1, 0), (1, 0, 1), (0, 0.018, 0)),
         _part((-1, 1, -1), (0, 0.95, 0.95), (0.02, 0, 0)),
         _part((1, 1, 0), (0.28, 0.95, 0.95)),
         _part((0.96, -0.6, 1), (0.25, 0.24, 0), (0, 0, 0.012), FRONT),
         _part((0.96, 0.3, 1), (0.25, 0.4, 0), (0, 0, 0.012), FRONT)],
    ),
    "chair": (
        (0.2, 0.42, 0.21), (0.24, 0.5, 0.24), False, 2.0,
        [_part((0, 0.02, 0), (1, 0, 1), (0, 0.025, 0), SOFT),
         _part((0, -1, -1), (1, 0.22, 0), (0, 0, 0.015)),
         *_legs(0.47, 0.017),
         _part((-1, -1, -1), (0, 0.5, 0), (0.017, 0, 0.014)),
         _part((1, -1, -1), (0, 0.5, 0), (0.017, 0, 0.014))],
    ),
    "sofa": (
        (0.55, 0.36, 0.38), (1.0, 0.44, 0.46), True, 1.2,
        [_part((0, 0.9, 0), (1, 0.42, 1), slot=SOFT),
         _part((0, -1, -1), (1, 0.9, 0.22), slot=SOFT),
         _part((-1, 0.9, 0), (0, 0.68, 1), (0.08, 0, 0), SOFT),
         _part((1, 0.9, 0), (0, 0.68, 1), (0.08, 0, 0), SOFT),
         _part((-0.75, -0.1, 0.6), (0.42, 0.12, 0.72), slot=SOFT),
         _part((0.75, -0.1, 0.6), (0.42, 0.12, 0.72), slot=SOFT),
         _part((-0.6, -0.5, -0.4), (0.18, 0.34, 0.1), slot=ACCENT),
         _part((0.7, -0.5, -0.4), (0.18, 0.34, 0.1), slot=ACCENT)],
    ),
    "bed": (
        (0.5, 0.42, 0.95), (0.85, 0.55, 1.05), True, 0.7,
        [_part((0, 0.9, 0), (1, 0.3, 1)),
         _part((0, 0.15, 0.5), (0.97, 0.22, 0.96), slot=SOFT),
         _part((0, 0, -1), (1, 1, 0), (0, 0, 0.03)),
         _part((-0.6, -0.25, -0.85), (0.38, 0.1, 0.2), slot=ACCENT),
         _part((0.6, -0.25, -0.85), (0.38, 0.1, 0.2), slot=ACCENT),
         _part((0, 0.12, 0.92), (1.0, 0.26, 0.55), slot=ACCENT)],
    ),
    "shelf": (
        (0.3, 0.7, 0.14), (0.6, 1.05, 0.2), True, 1.2,
        [_part((-1, 0, 0), (0, 1, 1), (0.012, 0, 0)),
         _part((1, 0, 0), (0, 1, 1), (0.012, 0, 0)),
         *[_part((0, y, 0), (0.98, 0, 0.98), (0, 0.012, 0)) for y in (-1, -0.35, 0.3, 0.95)],
         _part((-0.6, 0.17, 0), (0.35, 0.14, 0.8), slot=ACCENT),
         _part((0.5, -0.55, 0), (0.4, 0.12, 0.8), slot=SOFT)],
    ),
    "cupboard": (
        (0.4, 0.8, 0.22), (0.8, 1.05, 0.32), True, 1.0,
        [_part((0, 0, -1), (1, 1, 0.97)),
         _part((-0.97, 0, 1), (0.485, 0.95, 0), (-0.004, 0, 0.01), FRONT),
         _part((0.97, 0, 1), (0.485, 0.95, 0), (-0.004, 0, 0.01), FRONT),
         _part((-0.06, 0, 1), (0, 0.08, 0), (0.008, 0, 0.03), ACCENT),
         _part((0.06, 0, 1), (0, 0.08, 0), (0.008, 0, 0.03), ACCENT),
         _part((0, -1, 0), (1, 0, 1), (0.015, 0.015, 0.015))],
    ),
    "drawers": (
        (0.35, 0.36, 0.2), (0.7, 0.5, 0.26), True, 1.2,
        [_part((0, 1, -1), (1, 0.97, 0.97)),
         *[_part((0, y, 1), (0.93, 0.28, 0), (0, -0.008, 0.01), FRONT) for y in (-0.82, 0, 0.82)],
         _part((0, -1, 0), (1, 0, 1), (0.012, 0.012, 0.012)),
         *[_part((0, y, 1), (0.12, 0, 0), (0, 0.008, 0.025), ACCENT) for y in (-0.6, 0, 0.6)]],
    ),
    "screen": (
        (0.5, 0.5, 0.2), (0.85, 0.65, 0.24), True, 0.5,
        [_part((0, 1, 0), (1, 0.36, 1)),
         _part((0, -1, 0), (0.85, 0.56, 0), (0, 0, 0.02), ACCENT),
         _part((0, 0.2, 0), (0.1, 0.1, 0.4)),
         _part((-0.9, 0.9, 1), (0.46, 0.28, 0), (0, 0, 0.008), FRONT),
         _part((0.9, 0.9, 1), (0.46, 0.28, 0), (0, 0, 0.008), FRONT)],
    ),
    "boxes": (
        (0.2, 0.2, 0.18), (0.35, 0.45, 0.3), False, 0.5,
        [_part((-0.8, 1, 0), (0.6, 0.5, 0.9)),
         _part((0.9, 1, 0.3), (0.45, 0.4, 0.6), slot=SOFT),
         _part((-0.3, -1, -0.2), (0.5, 0.48, 0.6), slot=ACCENT)],
    ),
    "pillar": (
        (0.12, 0.5, 0.12), (0.2, 0.9, 0.2), False, 0.4,
        [_part((0, 1, 0), (1, 0, 1), (0, 0.05, 0)),
         _part((0, 0, 0), (0.75, 0.95, 0.75)),
         _part((0, -1, 0), (1, 0, 1), (0, 0.04, 0))],
    ),
}  # fmt: skip
WEIGHTS = [piece[3] for piece in PIECES.values()]
_LEAST, _GREATEST = (np.array([p[i] for p in PIECES.values()], np.float32) for i in (0, 1))
HAS_TOP = np.array([n in ("table", "low table", "desk", "drawers", "pillar") for n in PIECES])
_AT_WALL = np.array([piece[2] for piece in PIECES.values()])
_PARTS = np.zeros((len(PIECES), PARTS, 10), np.float32)
_USED = np.zeros((len(PIECES), PARTS), bool)
for _number, _piece in enumerate(PIECES.values()):
    _PARTS[_number, : len(_piece[4])] = _piece[4]
    _USED[_number, : len(_piece[4])] = True


def place(
    dice: Dice, half: Float[Array, "3"], number: int, wanted: Array
) -> tuple[Int[Array, " f"], Float[Array, "f 3"], Float[Array, "f 3"], Array, Bool[Array, " f"]]:
    """Pieces in a room of this half size: kind, half size, middle, yaw, and whether it is there.

    Each takes the roomiest of several places; one that finds none, or comes after `wanted` others,
    is not there.
    """
    kind = dice.choice(WEIGHTS, (number,))
    size = dice.uniform(jnp.asarray(_LEAST)[kind], jnp.asarray(_GREATEST)[kind], (number, 3))
    size = jnp.minimum(size, half * jnp.array([0.6, 0.85, 0.6]))
    at_wall = jnp.asarray(_AT_WALL)[kind]
    wall = dice.integers(4.0, (number, TRIES))
    along = dice.uniform(-1, 1, (number, TRIES, 2))
    jitter = dice.uniform(-0.35, 0.35, (number, TRIES))
    taste = dice.uniform(0, 0.15, (number, TRIES))

    def put(taken, inputs):
        size, at_wall, wall, along, jitter, taste, index = inputs
        # Backs face the walls +z, +x, -z and -x.
        yaw = jnp.array([jnp.pi, -jnp.pi / 2, 0.0, jnp.pi / 2])[wall]
        yaw = yaw + jnp.where(at_wall, 0.0, jitter)
        c, s = jnp.abs(jnp.cos(yaw)), jnp.abs(jnp.sin(yaw))
        extent = jnp.stack([c * size[0] + s * size[2], s * size[0] + c * size[2]], -1)  # [tries, 2]
        free = jnp.array([half[0], half[2]]) - extent - 0.02
        spot = along * jnp.maximum(free, 0) * jnp.where(at_wall, 1.0, 0.75)
        side = jnp.where(wall % 2 == 1, jnp.where(wall == 1, 1, -1), 0)
        front = jnp.where(wall % 2 == 0, jnp.where(wall == 0, 1, -1), 0)
        pushed = jnp.stack([side, front], -1)
        spot = jnp.where(at_wall & (pushed != 0), pushed * free, spot)
        gap = jnp.abs(spot[:, None] - taken[None, :, :2]) - extent[:, None] - taken[None, :, 2:]
        gap = gap.max(-1).min(-1)  # [tries]
        best = jnp.argmax(jnp.minimum(gap, 0.3) + taste)
        fits = (gap[best] > 0.02) & (free[best] > 0).all() & (index < wanted)
        row = jnp.concatenate([spot[best], extent[best]])
        row = jnp.where(fits, row, jnp.array([1e3, 1e3, 0, 0]))
        return taken.at[index].set(row), (spot[best], yaw[best], fits)

    taken = jnp.tile(jnp.array([1e3, 1e3, 0.0, 0.0]), (number, 1))
    inputs = (size, at_wall, wall, along, jitter, taste, jnp.arange(number))
    _, (spot, yaw, there) = jax.lax.scan(put, taken, inputs)
    middle = jnp.stack([spot[:, 0], half[1] - size[:, 1], spot[:, 1]], -1)
    return kind, size, middle, yaw, there


def build(kind, size, middle, yaw, there, slots: Int[Array, "f 4"]) -> tuple[Solids, Array]:
    """The boxes of pieces, piece after piece, and whether each is there; a piece is a body.

    `slots` are the materials of the pieces' bodies, soft parts, accents and fronts.
    """
    parts = jnp.asarray(_PARTS)[kind]  # [f, parts, 10]
    half = parts[..., 3:6] * size[:, None] + parts[..., 6:9]
    half = jnp.maximum(half, 0.004)
    local = parts[..., :3] * (size[:, None] - half)
    turn = yaw_rotations(yaw)  # [f, 3, 3], rows are axes
    center = middle[:, None] + (local[..., None] * turn[:, None]).sum(-2)
    slot = parts[..., 9].astype(jnp.int32)
    material = jnp.take_along_axis(slots, slot.reshape(slots.shape[0], -1), axis=1)
    count = half.shape[0] * PARTS
    turn = jnp.broadcast_to(turn[:, None], (half.shape[0], PARTS, 3, 3)).reshape(count, 3, 3)
    solids = make_solids(
        center.reshape(count, 3),
        half.reshape(count, 3),
        material.reshape(-1),
        turn,
        body=jnp.repeat(jnp.arange(half.shape[0]), PARTS),
    )
    return solids, (there[:, None] & jnp.asarray(_USED)[kind]).reshape(-1)
