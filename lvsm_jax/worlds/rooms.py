"""Furnished rooms: walls, windows, a door, pictures, furniture, and the small things on it."""

import jax.numpy as jnp

from lvsm_jax.worlds import furniture
from lvsm_jax.worlds.clutter import draw_windows, no_panes
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.dice import Dice, yaw_rotations
from lvsm_jax.worlds.layout import Stage, draw_light, join, keep_first, make_solids
from lvsm_jax.worlds.materials import pack
from lvsm_jax.worlds.recipes import draw_materials, draw_recipes
from lvsm_jax.worlds.scene import Scene

_WALLS = (
    "plaster", "plaster", "white paint", "deep paint", "striped paper", "flowered paper",
    "dotted paper", "bricks", "white bricks", "wall boards", "concrete",
)  # fmt: skip
_FLOORS = (
    "planks", "planks", "planks", "floor tiles", "chequered tiles", "carpet", "concrete", "marble",
    "terrazzo",
)  # fmt: skip
_WOODS = ("oak", "walnut", "lacquer", "coloured lacquer", "oak", "walnut", "steel")
_CLOTHS = ("cloth", "cloth", "striped cloth", "chequered cloth", "deep paint", "spotted")
_THINGS = (
    "vivid lacquer",
    "coloured lacquer",
    "marble",
    "spotted",
    "steel",
    "painting",
    "terrazzo",
)
_PAINTINGS = ("painting", "painting", "landscape", "mirror", "dotted paper")
# Uses of the rows of materials.
_USES = [
    _FLOORS, ("white paint", "white paint", "wall boards", "plaster"), _WALLS, _WALLS,
    ("lacquer", "walnut", "oak", "steel"), ("oak", "lacquer", "walnut", "coloured lacquer"),
    ("rug", "striped rug", "carpet", "rug", "painting"),
    ("cloth", "striped cloth", "flowered paper"),
    *[_PAINTINGS] * 4, *[_WOODS] * 5, *[_CLOTHS] * 5, *[_THINGS] * 8, ("lamp",), ("leaves",),
    ("steel", "coloured lacquer"),
]  # fmt: skip
_FLOOR, _CEILING, _WALL, _FEATURE, _FRAME, _DOOR, _RUG, _CURTAIN, _PAINTING = range(9)
_WOOD = _PAINTING + 4
_CLOTH, _THING = _WOOD + 5, _WOOD + 10
_LAMP, _LEAVES, _METAL = range(_THING + 8, _THING + 11)
_PICTURES = 4


def lay_out(dice: Dice, config: WorldsConfig, complexity) -> tuple[Scene, Stage]:
    """A furnished room, and where cameras stand in it."""
    half = dice.uniform(jnp.array([1.6, 1.2, 1.6]), jnp.array([3.2, 1.55, 3.2]), (3,))
    shell = jnp.stack([-half, half])
    materials = draw_materials(dice, draw_recipes(dice, _USES), complexity, config)
    has_window = dice.chance(config.window_share)
    windows = draw_windows(dice, half, has_window, (0.45, 1.1))

    pieces = max(2, min(12, (config.boxes - 8) // 5))  # of about five boxes each
    wanted = jnp.round(2 + (pieces - 2) * complexity)
    kind, size, middle, yaw, there = furniture.place(dice, half, pieces, wanted)
    slots = jnp.stack(
        [
            _WOOD + dice.integers(5.0, (pieces,)),
            _CLOTH + dice.integers(5.0, (pieces,)),
            _THING + dice.integers(8.0, (pieces,)),
            _WOOD + dice.integers(5.0, (pieces,)),
        ],
        axis=-1,
    )
    # Where boxes are few, furniture comes first.
    boxes = keep_first(
        *join(
            _rug(dice, half),
            furniture.build(kind, size, middle, yaw, there, slots),
            _door(dice, half, windows),
            _curtains(dice, half, windows),
            _pictures(dice, half, windows, complexity),
        ),
        config.boxes,
    )
    light = draw_light(dice, config, complexity, shell, indoors=True, has_window=has_window)
    tops = (size, middle, yaw, there & jnp.asarray(furniture.HAS_TOP)[kind])
    ellipsoids, cylinders = _small_things(dice, config, half, tops, light.bulbs[0], complexity)
    feature = dice.integers(6.0)
    faces = jnp.array([_WALL, _WALL, _CEILING, _FLOOR, _WALL, _WALL])
    is_feature = (jnp.arange(6) == feature) & (faces == _WALL)
    scene = Scene(
        boxes=boxes,
        ellipsoids=ellipsoids,
        cylinders=cylinders,
        shell=shell,
        face_material=jnp.where(is_feature, _FEATURE, faces),
        face_open=jnp.zeros(6, bool),
        windows=windows,
        skirting=jnp.where(dice.chance(0.75), dice.uniform(0.06, 0.14), 0.0),
        panes=no_panes(),
        materials=pack(materials),
        light=light,
    )
    eye = dice.uniform(1.1, 1.6)
    stage = Stage(
        low=-half + 0.25,
        high=half - 0.25,
        focus=jnp.concatenate(
            [
                dice.uniform(-0.3, 0.3, (1,)) * half[:1],
                half[1:2] - 0.7,
                dice.uniform(-0.3, 0.3, (1,)) * half[2:],
            ]
        ),
        radius=jnp.stack([0.55, 0.9]) * jnp.minimum(half[0], half[2]),
        height=half[1] - jnp.stack([eye + 0.1, eye - 0.1]),
        stride=0.3 * (half[0] + half[2]),
        arc=jnp.float32(1.3),
    )
    return scene, stage


def _on_wall(half, wall, along, y, deep):
    """Middles of things that are `deep` thick on walls +z, +x, -z, -x, and whether x is normal."""
    axis_x = wall % 2 == 1
    sign = jnp.where(wall < 2, 1.0, -1.0)
    x = jnp.where(axis_x, sign * (half[0] - deep), along)
    z = jnp.where(axis_x, along, sign * (half[2] - deep))
    return jnp.stack([x, y, z], -1), axis_x


def _flat(axis_x, wide, tall, deep):
    """Half sizes of flat things on walls."""
    deep = deep + 0 * wide
    upright = jnp.stack([wide, tall + 0 * wide, deep], -1)
    return jnp.where(axis_x[..., None], upright[..., ::-1], upright)


def _meets_window(windows, center, extent):
    """Whether flat things overlap a window, with some space around it."""
    gap = jnp.abs(center[:, None] - windows[None, :, 0]) - extent[:, None] - windows[None, :, 1]
    there = (windows[:, 1] > 0).any(-1)
    return ((gap.max(-1) < 0.05) & there).any(-1)


def _rug(dice, half):
    size = dice.uniform(jnp.array([0.25, 0, 0.25]), jnp.array([0.6, 0, 0.6]), (1, 3)) * half
    size = size.at[:, 1].set(0.008)
    center = dice.uniform(-0.3, 0.3, (1, 3)) * half
    center = center.at[:, 1].set(half[1] - 0.008)
    turn = yaw_rotations(dice.uniform(-0.4, 0.4, (1,)) * dice.chance(0.3))
    return make_solids(center, size, jnp.array([_RUG]), turn), dice.chance(0.65, (1,))


def _door(dice, half, windows):
    """A leaf in a frame, and its handle."""
    wall = dice.integers(4.0)
    side = jnp.where(wall % 2 == 1, half[2], half[0])
    along = dice.uniform(-1, 1) * (side - 0.6)
    tall = jnp.minimum(1.0, 0.82 * half[1])
    y = half[1] - tall
    leaf, axis_x = _on_wall(half, wall, along, y, 0.01)
    frame, _ = _on_wall(half, wall, along, y - 0.04, 0.005)
    handle, _ = _on_wall(half, wall, along + 0.32, half[1] - 1.0, 0.04)
    extents = jnp.stack(
        [
            _flat(axis_x, jnp.float32(0.42), tall, 0.025),
            _flat(axis_x, jnp.float32(0.5), tall + 0.04, 0.012),
            _flat(axis_x, jnp.float32(0.05), 0.01, 0.02),
        ]
    )
    centers = jnp.stack([leaf, frame, handle])
    material = jnp.array([_DOOR, _FRAME, _METAL])
    there = dice.chance(0.6) & ~_meets_window(windows, centers, extents).any()
    return make_solids(centers, extents, material), jnp.broadcast_to(there, (3,))


def _curtains(dice, half, windows):
    """Two curtains and a rail at the first window, and a sill under it."""
    middle, extent = windows[0]
    axis_x = extent[0] < extent[2]
    sign = jnp.sign(jnp.where(axis_x, middle[0], middle[2]))
    wall = jnp.where(axis_x, 1, 0) + jnp.where(sign < 0, 2, 0)
    along = jnp.where(axis_x, middle[2], middle[0])
    wide = jnp.where(axis_x, extent[2], extent[0])
    top = middle[1] - extent[1] - 0.12
    low = jnp.where(dice.chance(0.6), half[1] - 0.04, middle[1] + extent[1] + 0.15)
    cloth = dice.uniform(0.1, 0.22)
    places = jnp.stack([along - wide - 0.06, along + wide + 0.06, along, along])
    ys = jnp.stack([(top + low) / 2, (top + low) / 2, top - 0.02, middle[1] + extent[1] + 0.015])
    deep = jnp.array([0.06, 0.06, 0.06, 0.07])
    centers, _ = _on_wall(half, jnp.broadcast_to(wall, (4,)), places, ys, deep)
    wides = jnp.stack([cloth, cloth, wide + 0.3, wide + 0.05])
    talls = jnp.stack([(low - top) / 2, (low - top) / 2, 0.015 + 0 * low, 0.015 + 0 * low])
    thick = jnp.array([0.03, 0.03, 0.015, 0.07])
    extents = _flat(jnp.broadcast_to(axis_x, (4,)), wides, talls, thick)
    there = (wide > 0.1) & jnp.stack([*[dice.chance(0.65)] * 3, dice.chance(0.7)])
    material = jnp.array([_CURTAIN, _CURTAIN, _METAL, _FRAME])
    return make_solids(centers, extents, material), there


def _pictures(dice, half, windows, complexity):
    """Framed pictures and mirrors on the walls."""
    number = _PICTURES
    wall = (dice.integers(4.0) + jnp.arange(number)) % 4
    side = jnp.where(wall % 2 == 1, half[2], half[0])
    wide, tall = dice.uniform(0.15, 0.5, (number,)), dice.uniform(0.15, 0.4, (number,))
    along = dice.uniform(-1, 1, (number,)) * (side - wide - 0.2)
    y = -dice.uniform(0.0, 0.35, (number,)) * half[1]
    border = dice.uniform(0.01, 0.05, (number,))
    frame, axis_x = _on_wall(half, wall, along, y, 0.012)
    canvas, _ = _on_wall(half, wall, along, y, 0.014)
    frames = _flat(axis_x, wide + border, tall + border, 0.014)
    canvases = _flat(axis_x, wide, tall, 0.016)
    there = dice.chance(0.3 + 0.5 * complexity, (number,)) & ~_meets_window(windows, frame, frames)
    both = make_solids(
        jnp.stack([frame, canvas], 1).reshape(-1, 3),
        jnp.stack([frames, canvases], 1).reshape(-1, 3),
        jnp.stack([jnp.full(number, _FRAME), _PAINTING + jnp.arange(number)], 1).reshape(-1),
    )
    return both, jnp.repeat(there, 2)


def _small_things(dice, config, half, tops, bulb, complexity):
    """Ellipsoids and cylinders: lamps, plants, and vases, balls and bowls on furniture."""
    size, middle, yaw, there = tops  # of pieces with a top to put things on
    pieces = size.shape[0]

    def put_on(number, radius, tall, first_body):
        """Middles of things of these half heights on pieces, or on the floor where none is.

        And their bodies: what lies on a piece moves with it.
        """
        piece = dice.integers(float(pieces), (number,))
        local = dice.uniform(-1, 1, (number, 3)) * jnp.maximum(size[piece] - radius[:, None], 0)
        turn = yaw_rotations(yaw)[piece]
        spot = middle[piece] + local[:, :1] * turn[:, 0] + local[:, 2:] * turn[:, 2]
        raised = there[piece]
        floor = dice.uniform(-0.9, 0.9, (number, 3)) * (half - radius[:, None])
        spot = jnp.where(raised[:, None], spot, floor)
        ground = jnp.where(raised, middle[piece, 1] - size[piece, 1], half[1])
        body = jnp.where(raised, piece, first_body + jnp.arange(number))
        return jnp.concatenate([spot[:, :1], (ground - tall)[:, None], spot[:, 2:]], axis=1), body

    # A plant in a corner, a floor lamp in another, a lamp that hangs over the bulb.
    corner = jnp.where(dice.chance(0.5, (2, 2)), 1.0, -1.0) * jnp.array([[1.0, 1.0], [1.0, -1.0]])
    spots = corner * (half[jnp.array([0, 2])] - 0.35)
    plant, lamp = spots
    pot = dice.uniform(0.12, 0.2)
    leaves = min(4, config.ellipsoids // 2)
    rise = dice.uniform(0.25, 0.7)
    foliage = dice.uniform(-1, 1, (leaves, 3)) * jnp.array([0.14, 0.25, 0.14])
    foliage = foliage + jnp.stack([plant[0], half[1] - 2 * pot - rise * 0.8, plant[1]])
    leaf_half = dice.uniform(0.1, 0.26, (leaves, 3))
    has_plant, has_lamp, hangs = dice.chance(0.55), dice.chance(0.45), dice.chance(0.7)

    number = config.ellipsoids
    radius = dice.uniform(0.04, 0.14, (number,))
    flat = dice.uniform(0.5, 1.3, (number,))
    halves = jnp.stack([radius, radius * flat, radius], -1)
    spot, body = put_on(number, radius, radius * flat, pieces)
    balls = make_solids(spot, halves, _THING + dice.integers(8.0, (number,)), body=body)
    some = jnp.arange(number) < jnp.ceil(number * (0.2 + 0.6 * complexity))
    greens = make_solids(foliage, leaf_half, jnp.full(leaves, _LEAVES), dice.rotations(leaves))
    ellipsoids = keep_first(*join((greens, has_plant), (balls, some)), number)

    number = config.cylinders
    pole = half[1] - 0.72
    fixed_center = jnp.array([
        [plant[0], half[1] - pot, plant[1]],
        [lamp[0], half[1] - 0.015, lamp[1]], [lamp[0], pole, lamp[1]],
        [lamp[0], half[1] - 1.5, lamp[1]],
        [bulb[0], bulb[1] - 0.17, bulb[2]], [bulb[0], (bulb[1] - 0.25 - half[1]) / 2, bulb[2]],
    ])  # fmt: skip
    fixed_half = jnp.array([
        [pot, pot, pot], [0.15, 0.015, 0.15], [0.012, 0.72, 0.012], [0.2, 0.15, 0.2],
        [0.2, 0.1, 0.2], [0.006, (half[1] + bulb[1] - 0.25) / 2, 0.006],
    ])  # fmt: skip
    fixed_half = jnp.maximum(fixed_half, 0.004)
    ratio = jnp.array([1.3, 0.9, 1.0, 0.65, 0.4, 1.0])
    material = jnp.array([_THING, _METAL, _METAL, _LAMP, _LAMP, _METAL])
    fixed = make_solids(fixed_center, fixed_half, material, ratio=ratio)
    fixed_there = jnp.stack([has_plant, has_lamp, has_lamp, has_lamp, hangs, hangs])
    radius, tall = dice.uniform(0.03, 0.1, (number,)), dice.uniform(0.04, 0.2, (number,))
    spot, body = put_on(number, radius, tall, pieces + config.ellipsoids)
    vases = make_solids(
        spot,
        jnp.stack([radius, tall, radius], -1),
        _THING + dice.integers(8.0, (number,)),
        ratio=dice.uniform(0.5, 1.5, (number,)),
        body=body,
    )
    some = jnp.arange(number) < jnp.ceil(number * (0.2 + 0.6 * complexity))
    cylinders = keep_first(*join((fixed, fixed_there), (vases, some)), number)
    return ellipsoids, cylinders
