"""Where a ray met a surface: its point, normal, coordinates and colour."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lvsm_jax.worlds import materials
from lvsm_jax.worlds.scene import Scene
from lvsm_jax.worlds.solids import FAR, Geometry, to_unit

_NORMAL_HALF = 0.05  # half the thickness of a window along its wall's normal
_FRAME, _BAR = 0.06, 0.015  # widths of window frames and half widths of bars, in metres
_WHITE = 0.75


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surface:
    """Surface points of rays.

    Attributes:
        point: `[3, r]`.
        normal: `[3, r]` unit normal towards the ray's origin.
        bumped: `[3, r]` the same with bumps.
        color: `[3, r]` linear albedo.
        shine: `[r]` strength of highlights.
        mirror: `[r]` share of mirror-like reflection.
        glow: `[r]` light given, in units of the colour.
        sky: `[r]` whether the ray leaves the scene, and all of the above means nothing.
    """

    point: Any
    normal: Any
    bumped: Any
    color: Any
    shine: Any
    mirror: Any
    glow: Any
    sky: Any


def surface_rows(geometry: Geometry):
    """Rows as of `solids.pack` for all indices that `cast` gives."""
    low, high = geometry.shell
    half = (high - low) / 2
    matrix = jnp.diag(1 / half).reshape(9)
    face = jnp.concatenate([matrix, -(low + high) / (high - low), half, jnp.ones(1)])
    solids = [geometry.boxes, geometry.ellipsoids, geometry.cylinders]
    return jnp.concatenate([*solids, jnp.broadcast_to(face, (6, 16))])


def at(scene: Scene, geometry: Geometry, table, origins, directions, distance, index, pixel):
    """The surfaces that rays met; `pixel` is a pixel's width at distance 1.

    `table` holds the rows of `surface_rows` beside those of `Scene.surface_materials`, as columns:
    picking numbers one by one then joins the loop that uses them.
    """
    rows = jnp.take(table, index, axis=1, mode="clip")
    row, material = rows[:16], materials.unpack(rows[16:])
    point = origins + distance * directions
    unit = to_unit(row, point)
    half = row[12:15]
    first_ellipsoid, first_cylinder, first_face = geometry.starts[1:]
    glass, frame = in_window(scene, point)
    face = jnp.clip(index - first_face, 0, 5)
    sky = (index >= first_face) & (scene.face_open[face] | glass | (distance > FAR / 2))
    round_ = (index >= first_ellipsoid) & (index < first_cylinder)
    turned = (index >= first_cylinder) & (index < first_face)
    shell = index >= first_face

    x, y, z = unit
    beyond = [(jnp.abs(u) - 1) * half[i] for i, u in enumerate(unit)]
    flat_x = (beyond[0] >= beyond[1]) & (beyond[0] >= beyond[2])
    flat_y = ~flat_x & (beyond[1] >= beyond[2])
    flat_z = ~flat_x & ~flat_y
    across = jnp.sqrt(x * x + z * z)
    wide = (1 + row[15]) / 2 + (1 - row[15]) / 2 * y
    cap = turned & ((jnp.abs(y) - 1) * half[1] > (across - wide) * half[0])
    lean = -(1 - row[15]) / 2 * wide
    box = ~round_ & ~turned
    boxed = [u * f for u, f in zip(unit, (flat_x, flat_y, flat_z), strict=True)]
    side = [jnp.where(cap, 0.0, x), jnp.where(cap, y, lean), jnp.where(cap, 0.0, z)]
    gradient = [
        jnp.where(box, b, jnp.where(round_, u, s))
        for b, u, s in zip(boxed, unit, side, strict=True)
    ]
    normal = _turn_back(row, gradient)
    normal = normal / jnp.sqrt((normal * normal).sum(0))
    facing = (normal * directions).sum(0)
    normal = jnp.where(facing > 0, -normal, normal)

    local = [u * half[i] for i, u in enumerate(unit)]
    uv = _plane_coordinates(local, half, flat_x & box, (flat_y & box) | cap, box | cap)
    longest = jnp.max(half, axis=0)
    along = [half[i] >= longest for i in range(3)]
    seed = (index * 37 % 101).astype(jnp.float32) * 0.173
    length = jnp.sqrt((directions * directions).sum(0))
    footprint = pixel * distance / length / jnp.maximum(jnp.abs(facing) / length, 0.2)
    inputs = (material, uv, local, along, seed, footprint)
    color, slopes = when(~sky.all(), materials.paint, *inputs)
    tilt = _turn_back(row, [s * half[i] for i, s in enumerate(slopes)])
    tilt = tilt - normal * (tilt * normal).sum(0)
    bumped = normal - tilt
    bumped = bumped / jnp.sqrt((bumped * bumped).sum(0))

    wall = shell & ~flat_y
    low = scene.shell[1, 1] - point[1] < scene.skirting
    trim = (wall & low) | (shell & frame)
    color = jnp.where(trim, _WHITE, color)
    bumped = jnp.where(trim, normal, bumped)
    shine = jnp.where(trim, 0.1, material["shine"])
    mirror = jnp.where(trim, 0.0, material["mirror"])
    return Surface(point, normal, bumped, color, shine, mirror, material["glow"], sky)


def when(needed, function, *inputs):
    """`function(*inputs)`, or zeros where no ray needs it.

    On a CPU this also draws a line for the compiler: what crosses it is computed once, instead of
    again in each loop that uses it.
    """
    like = jax.eval_shape(function, *inputs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.cond(needed, function, lambda *_: zeros, *inputs)


def _turn_back(row, gradient):
    """Vectors of the unit axes in the world, by the transposed matrix of each row."""
    return jnp.stack([sum(row[3 * i + j] * g for i, g in enumerate(gradient)) for j in range(3)])


def _plane_coordinates(local, half, flat_x, flat_y, flat):
    """Coordinates in the surface's plane: `u` along the longer side of flat ones, else around."""
    x, y, z = local
    first = jnp.where(flat_x, z, x)
    second = jnp.where(flat_y, z, y)
    first_half = jnp.where(flat_x, half[2], half[0])
    second_half = jnp.where(flat_y, half[2], half[1])
    swap = second_half > first_half
    u, v = jnp.where(swap, second, first), jnp.where(swap, first, second)
    around = _angle(z / half[2], x / half[0]) * half[0]
    return jnp.where(flat, u, around), jnp.where(flat, v, y)


def _angle(y, x):
    """The angle of (x, y) to 0.005 rad; cheaper than the exact one."""
    low = jnp.minimum(jnp.abs(x), jnp.abs(y)) / (jnp.maximum(jnp.abs(x), jnp.abs(y)) + 1e-9)
    angle = low * (1.0574 - 0.2720 * low)
    angle = jnp.where(jnp.abs(y) > jnp.abs(x), 1.5707963 - angle, angle)
    angle = jnp.where(x < 0, 3.1415927 - angle, angle)
    return jnp.where(y < 0, -angle, angle)


def in_window(scene: Scene, point):
    """Whether points of the shell are on the glass, and on the frame or a bar, of a window."""
    glass = frame = jnp.zeros(point.shape[1], bool)
    for middle, half in scene.windows:
        within, edge = jnp.ones(point.shape[1], bool), jnp.zeros(point.shape[1], bool)
        for axis in range(3):
            away = jnp.abs(point[axis] - middle[axis])
            margin = half[axis] - away
            within = within & (margin > 0)
            in_plane = half[axis] > 1.5 * _NORMAL_HALF
            edge = edge | (in_plane & ((margin < _FRAME) | (away < _BAR)))
        glass, frame = glass | (within & ~edge), frame | (within & edge)
    return glass, frame
