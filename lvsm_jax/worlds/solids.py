"""Boxes, ellipsoids, cylinders and cones, and the shell around them: what rays meet first.

All solids are convex. Brought into the axes where it is the unit shape, a solid is entered by a ray
at one distance and left at another. One loop over the solids of each form keeps a running minimum
for a block of rays. On a CPU these stay in the cache, and a few solids a turn are best. On
accelerators each turn reads and writes all rays, so that one turn should take all solids. The shell
is a box seen from inside.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lvsm_jax.worlds.branches import when

FORMS = ("boxes", "ellipsoids", "cylinders")
FAR = 1e4  # distance of what is open: the sky
NEAR = 1e-3  # closer, a ray has not left the surface that it starts from
_INDEX = 0xFF  # the bits of a packed distance that say what was met
UNROLLED = 4  # solids of a turn that are written out one after the other


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solids:
    """Solids of one form; the first `count` are there.

    Attributes:
        turn: `[p, 3, 3]` rotations whose rows are the solids' axes in the world.
        center: `[p, 3]`.
        half: `[p, 3]` half sizes along these axes.
        ratio: `[p]` of cones, the radius at the end of negative y over that at the other.
        material: `[p]` rows of the scene's materials.
        count: `[]`.
        body: `[p]` number of the body that each is a part of, which moves as one; -1 for what
            stands still whatever moves. None: nothing moves.
    """

    turn: Any
    center: Any
    half: Any
    ratio: Any
    material: Any
    count: Any
    body: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Geometry:
    """Everything that rays can meet, as rows of numbers.

    Attributes:
        boxes: rows of `pack`, a multiple of `UNROLLED`.
        ellipsoids: the same.
        cylinders: the same.
        counts: `[3]`, how many of each are there.
        shell: `[2, 3]` least and greatest coordinates of the shell around everything.
        at_once: solids that rays are compared with in a turn, at most (`worlds.solids_at_once`).
    """

    boxes: Any
    ellipsoids: Any
    cylinders: Any
    counts: Any
    shell: Any
    at_once: int = dataclasses.field(default=UNROLLED, metadata={"static": True})

    @property
    def starts(self) -> tuple[int, int, int, int]:
        """Index of the first box, ellipsoid, cylinder and face of the shell."""
        first, second, third = (len(getattr(self, form)) for form in FORMS)
        return 0, first, first + second, first + second + third


def pack(solids: Solids) -> Float[Array, "p 16"]:
    """Rows of world to unit axes (9), offset (3), half sizes (3), ratio; missing ones far."""
    number = solids.half.shape[0]
    padding = -number % UNROLLED
    there = (jnp.arange(number) < solids.count)[:, None]
    center = jnp.where(there, solids.center, 1e6)
    half = jnp.where(there, solids.half, 1e-3)
    matrix = solids.turn / half[:, :, None]
    offset = -(matrix * center[:, None, :]).sum(-1)
    rows = jnp.concatenate([matrix.reshape(number, 9), offset, half, solids.ratio[:, None]], axis=1)
    return jnp.pad(rows, ((0, padding), (0, 0)), mode="edge")


def to_unit(row, points):
    """Points `[3, r]`, or three of their coordinates, in the axes of a solid of this row."""
    x, y, z = points
    return [row[3 * i] * x + row[3 * i + 1] * y + row[3 * i + 2] * z + row[9 + i] for i in range(3)]


def turn_to_unit(row, vectors):
    """The same for directions."""
    x, y, z = vectors
    return [row[3 * i] * x + row[3 * i + 1] * y + row[3 * i + 2] * z for i in range(3)]


def _enter_box(origin, direction, row):
    inverse = [1 / (d + 1e-20) for d in direction]
    middle = [-o * i for o, i in zip(origin, inverse, strict=True)]
    width = [jnp.abs(i) for i in inverse]
    first, second, third = (m - w for m, w in zip(middle, width, strict=True))
    enter = jnp.maximum(jnp.maximum(first, second), third)
    first, second, third = (m + w for m, w in zip(middle, width, strict=True))
    return enter, jnp.minimum(jnp.minimum(first, second), third)


def _enter_ellipsoid(origin, direction, row):
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    inverse = 1 / (dx * dx + dy * dy + dz * dz)
    middle = -(ox * dx + oy * dy + oz * dz) * inverse
    # From the point nearest to the centre: the plain discriminant cancels far away.
    px, py, pz = ox + middle * dx, oy + middle * dy, oz + middle * dz
    square = (1 - (px * px + py * py + pz * pz)) * inverse
    width = jnp.sqrt(jnp.maximum(square, 0))
    return jnp.where(square > 0, middle - width, jnp.inf), middle + width


def _enter_cylinder(origin, direction, row):
    """Cones too: the radius is `a + b y` for y from -1 to 1."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    ratio = row[15]
    a, b = (1 + ratio) / 2, (1 - ratio) / 2
    radius = a + b * oy
    square = dx * dx + dz * dz - b * b * dy * dy
    square = jnp.where(jnp.abs(square) < 1e-12, 1e-12, square)
    half = ox * dx + oz * dz - b * dy * radius
    rest = ox * ox + oz * oz - radius * radius
    discriminant = half * half - square * rest
    inverse = 1 / square
    width = jnp.sqrt(jnp.maximum(discriminant, 0)) * jnp.abs(inverse)
    middle = -half * inverse
    near, far = middle - width, middle + width
    # Steeper than its side, a ray crosses both halves of the double cone, and is inside of each
    # beyond one of the crossings.
    steep, opening = square < 0, b * dy > 0
    missed = (discriminant < 0) & ~steep
    enter = jnp.where(steep, jnp.where(opening, far, -jnp.inf), near)
    leave = jnp.where(steep, jnp.where(opening, jnp.inf, near), far)
    level = 1 / (dy + 1e-20)
    first, last = -oy * level - jnp.abs(level), -oy * level + jnp.abs(level)
    enter, leave = jnp.maximum(enter, first), jnp.minimum(leave, last)
    return jnp.where(missed, jnp.inf, enter), leave


_ENTER = (_enter_box, _enter_ellipsoid, _enter_cylinder)


# Of a form, the rows of one or several solids and their indices: a number for each ray.
Step = Callable[[int, Any, Any], Array]


def _over_solids(geometry: Geometry, step: Step, join: jnp.ufunc, start: Array) -> Array:
    """`start`, joined with `step(form, row, index)` of all solids that are there.

    Joining is exact and in any order the same, as a minimum is: so are the results of any number
    of solids a turn, but for how their own arithmetic is rounded.
    """
    joined = start
    for number, (form, first) in enumerate(zip(FORMS, geometry.starts[:3], strict=True)):
        rows = getattr(geometry, form)
        turn = _turn(step, join, number)
        size = solids_a_turn(len(rows), geometry.at_once)
        if UNROLLED < size == len(rows):
            joined = turn(rows, first, joined)  # no loop: its end would have to be waited for
            continue

        def body(i, joined, rows=rows, first=first, turn=turn, size=size):
            some = jax.lax.dynamic_slice_in_dim(rows, i * size, size)
            return turn(some, first + i * size, joined)

        turns = (geometry.counts[number] + size - 1) // size
        joined = jax.lax.fori_loop(0, turns, body, joined)
    return joined


def _turn(step: Step, join: jnp.ufunc, form: int) -> Callable[[Array, Any, Array], Array]:
    """Joins some solids of a form, by their rows and the index of the first, to a number a ray."""

    def written_out(rows, first):
        return [step(form, rows[k], first + k) for k in range(UNROLLED)]

    def turn(rows, first, joined):
        if len(rows) == UNROLLED:
            return functools.reduce(join, written_out(rows, first), joined)
        # One kernel, in which each ray's numbers stay in registers: a loop inside of a reduction.
        groups = rows.reshape(-1, UNROLLED, rows.shape[1])
        firsts = first + UNROLLED * jnp.arange(len(groups))
        each = jax.vmap(lambda *group: functools.reduce(join, written_out(*group)))
        return join(joined, join.reduce(each(groups, firsts), axis=0))

    return turn


def solids_a_turn(number: int, most: int) -> int:
    """The most that divide a number of rows, a multiple of `UNROLLED`, but at least so many."""
    groups, wanted = number // UNROLLED, max(1, most // UNROLLED)
    return UNROLLED * max(n for n in range(1, wanted + 1) if groups % n == 0)


def meet(form, row, origins, directions):
    """Where rays enter a solid; infinity where they miss it or start from it."""
    enter, leave = _ENTER[form](to_unit(row, origins), turn_to_unit(row, directions), row)
    return jnp.where((enter < leave) & (enter > NEAR), enter, jnp.inf)


def cast(
    geometry: Geometry, origins: Float[Array, "3 r"], directions: Float[Array, "3 r"]
) -> tuple[Float[Array, " r"], Int[Array, " r"]]:
    """Distances, in lengths of the directions, and indices of what rays meet first.

    Indices count boxes, ellipsoids, cylinders (see `Geometry.starts`), then the shell's faces -x,
    +x, -y, +y, -z, +z. Distances are short of the exact ones by up to 2^-15 of them: while the
    nearest is sought, the index is kept in their last bits, so that there is one number for each
    ray to compare and to keep.
    """

    def packed(distance, index):
        bits = jax.lax.bitcast_convert_type(distance, jnp.int32)
        return (bits & ~_INDEX) | index

    def step(form, row, index):
        return packed(meet(form, row, origins, directions), index)

    there = (geometry.shell[0] < geometry.shell[1]).all()
    distance, face = when(there, leave_shell, geometry.shell, origins, directions)
    nearest = packed(distance, geometry.starts[3] + face)
    nearest = _over_solids(geometry, step, jnp.minimum, nearest)
    distance = jax.lax.bitcast_convert_type(nearest & ~_INDEX, jnp.float32)
    return distance, nearest & _INDEX


def leave_shell(shell, origins, directions):
    """Distance to the shell from inside, and the number of its face."""
    exits = [
        (jnp.where(d > 0, shell[1, axis], shell[0, axis]) - o) / jnp.where(d == 0, 1e-20, d)
        for axis, (o, d) in enumerate(zip(origins, directions, strict=True))
    ]
    x, y, z = exits
    dx, dy, dz = ((d > 0).astype(jnp.int32) for d in directions)
    face = jnp.where(x <= jnp.minimum(y, z), dx, jnp.where(y <= z, 2 + dy, 4 + dz))
    return jnp.maximum(jnp.minimum(jnp.minimum(x, y), z), 0.0), face


def is_blocked(
    geometry: Geometry,
    origins: Float[Array, "3 r"],
    directions: Float[Array, "3 r"],
    limit: Float[Array, " r"],
) -> Bool[Array, " r"]:
    """Whether a solid is on the ray before `limit`, in lengths of the directions."""

    def step(form, row, index):
        del index
        return meet(form, row, origins, directions) < limit

    return _over_solids(geometry, step, jnp.logical_or, jnp.zeros(limit.shape, bool))


def distance_to_solids(geometry: Geometry, points: Float[Array, "3 r"]) -> Float[Array, " r"]:
    """About how far the nearest solid is from each point; 0 inside one."""

    def step(form, row, index):
        del index
        x, y, z = unit = to_unit(row, points)
        half = row[12:15]
        if form == 0:
            gaps = [jnp.maximum(jnp.abs(u) - 1, 0) * half[i] for i, u in enumerate(unit)]
            distance = jnp.sqrt(sum(gap * gap for gap in gaps))
        elif form == 1:
            radius = jnp.sqrt(x * x + y * y + z * z)
            steep = jnp.sqrt(sum((u / half[i]) ** 2 for i, u in enumerate(unit)))
            distance = radius * jnp.maximum(radius - 1, 0) / jnp.maximum(steep, 1e-6)
        else:
            wide = (1 + row[15]) / 2 + (1 - row[15]) / 2 * jnp.clip(y, -1, 1)
            across = jnp.maximum(jnp.sqrt(x * x + z * z) - wide, 0) * half[0]
            along = jnp.maximum(jnp.abs(y) - 1, 0) * half[1]
            distance = jnp.sqrt(across * across + along * along)
        return distance

    return _over_solids(geometry, step, jnp.minimum, jnp.full(points.shape[1], FAR))
