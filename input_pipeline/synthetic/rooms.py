"""Rooms drawn at random: their size, colours, furniture, and the walk of the camera in them.

The walks are like those of real-estate videos: one slow, smooth walk at eye height. The room is a
box around the origin, in metres, and its floor is at `y = +half[1]`. Axes are OpenCV's.
"""

import colorsys
import dataclasses

import numpy as np
from jaxtyping import Float, Float32

from input_pipeline.synthetic import raycast
from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.errors import UserError

CLEARANCE = 0.4  # metres between any camera and the furniture
WALL_MARGIN = 0.45  # metres that a camera keeps away from every wall
FREE_VIEW = 2.0  # metres to the wall straight ahead, at least: nobody films a wall from up close
MAX_TRIES = 5000  # walks drawn before there is none
WOOD, SKY = (0.12, 0.28), (0.66, 0.76)  # hues, on the wheel of `_color`
# Shape, and least and greatest half width, height and depth of what stands in the rooms, in metres.
FURNITURE = (
    ("box", (0.30, 0.25, 0.25), (0.75, 0.50, 0.50)),  # chest
    ("box", (0.25, 0.65, 0.25), (0.50, 1.00, 0.40)),  # cupboard
    ("ball", (0.30, 0.30, 0.30), (0.55, 0.55, 0.55)),
    ("cylinder", (0.30, 0.25, 0.30), (0.50, 0.45, 0.50)),  # stool
    ("cylinder", (0.16, 0.80, 0.16), (0.26, 1.10, 0.26)),  # post
)


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """How hard the rooms are: least and greatest values, in metres, in radians or as said."""

    objects: tuple[int, int] = (2, 4)  # pieces of furniture; fewer where none fits any more
    motion: tuple[float, float] = (0.8, 1.4)  # length of the camera's walk
    turn: float = 0.6  # greatest change of the camera's heading
    field_of_view: tuple[float, float] = (60.0, 90.0)  # horizontal, in degrees

    def __post_init__(self):
        for field in ("objects", "motion", "field_of_view"):
            least, greatest = getattr(self, field)
            if not 0 <= least <= greatest:
                raise UserError(f"{field} is from {least} to {greatest}, expected 0 <= from <= to")
        check_at_least("rooms", self, turn=0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A room and the cameras of a clip filmed in it."""

    room: raycast.Room  # what there is to see
    w2c: Float32[np.ndarray, "n 3 4"]  # OpenCV world-to-camera matrices
    normalized_fxfycxcy: Float32[np.ndarray, "4"]


def sample_scene(
    rng: np.random.Generator, config: SceneConfig, num_frames: int, aspect: float = 1.0
) -> Scene:
    """Draws a room, a walk through it, and furniture that the camera sees and does not touch.

    Nothing random but `rng` enters; `aspect` is the width of the images over their height.
    """
    half = _vector(rng.uniform(1.7, 2.5), rng.uniform(1.25, 1.45), rng.uniform(1.7, 2.5))
    path = sample_path(rng, half, num_frames, config)
    angle = np.radians(rng.uniform(*config.field_of_view))
    focal = 0.5 / np.tan(angle / 2)
    hue = rng.random()
    faces = _faces(rng, hue)
    solids = _furnish(rng, config, half, path, angle, hue)
    panels = _decorate(rng, half, hue)
    lamp = _vector(*(rng.uniform(-0.5, 0.5, 3) * half))
    lamp[1] = 0.6 - half[1]
    room = raycast.Room(half, faces, panels, solids, lamp)
    return Scene(room, path.w2c(), _vector(focal, focal * aspect, 0.5, 0.5))


def _vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour on a wheel that is wide where interiors are: in warm tones and in blues."""
    hue = np.interp(hue % 1, (0.0, 0.45, 0.53, 0.9, 0.95, 1.0), (0.0, 0.16, 0.44, 0.7, 0.92, 1.0))
    return _vector(*colorsys.hsv_to_rgb(hue, np.clip(saturation, 0, 1), np.clip(value, 0, 1)))


def _colors(rng, hue: float, saturation: float, value: float, contrast: float) -> np.ndarray:
    """Two related colours, the second darker by `contrast` and a little off in hue."""
    light = _color(hue, saturation, value + contrast / 2)
    dark = _color(hue + rng.uniform(-0.08, 0.08), saturation * 1.2, value - contrast / 2)
    return np.stack([light, dark])


def _texture(rng, colors: np.ndarray, wavelength: tuple[float, float], axes) -> raycast.Texture:
    """Waves, stripes or checks of about the given wavelength, in the plane of two axes."""
    tilt = rng.choice([0, np.pi / 2, np.pi / 4, rng.uniform(0, np.pi)])
    turned = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    directions = turned @ np.asarray(axes, np.float64)
    frequency = 2 * np.pi / rng.uniform(*wavelength, 2)
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = np.concatenate([directions * frequency[:, None], phase[:, None]], axis=1)
    mixes = ((0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.0, 0.4))
    mix = _vector(*mixes[rng.integers(len(mixes))])
    return raycast.Texture(colors, waves.astype(np.float32), mix, float(rng.uniform(1.0, 3.0)))


def _tangents(face: int) -> np.ndarray:
    """The two axes of the room that lie in a face."""
    return np.delete(np.eye(3), face // 2, axis=0)


def _faces(rng, hue: float) -> tuple[raycast.Texture, ...]:
    """Papered walls in neighbouring hues, one of them set off, on a dark floor, a pale ceiling."""
    feature = rng.choice([0, 1, 4, 5])
    textures = []
    for face in range(6):
        if face == raycast.CEILING:
            colors = _colors(rng, hue, 0.06, 0.9, 0.14)
        elif face == raycast.FLOOR:
            wood = rng.uniform(*WOOD) if rng.random() < 0.6 else hue + 0.5
            colors = _colors(rng, wood, rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.6), 0.25)
        else:
            saturation, value = rng.uniform(0.2, 0.45), rng.uniform(0.5, 0.85)
            shade = hue + (0.45 if face == feature else 0.0) + rng.uniform(-0.07, 0.07)
            colors = _colors(rng, shade, saturation, value, rng.uniform(0.2, 0.4))
        textures.append(_texture(rng, colors, (0.9, 2.4), _tangents(face)))
    return tuple(textures)


def _furnish(rng, config, half, path, angle, hue) -> tuple[raycast.Solid, ...]:
    """Furniture where the camera looks, clear of its walk and of each other."""
    solids: list[raycast.Solid] = []
    for _ in range(rng.integers(*config.objects, endpoint=True)):
        for _ in range(60):
            solid = _draw_solid(rng, half, path, angle, hue + 0.3 + 0.22 * len(solids))
            if _is_clear(solid, path, solids):
                solids.append(solid)
                break
    return tuple(solids)


def _draw_solid(rng, half, path, angle, hue) -> raycast.Solid:
    """One piece somewhere in view of one of the cameras, standing on the floor."""
    shape, least, greatest = FURNITURE[rng.integers(len(FURNITURE))]
    if shape == "ball":
        size = np.full(3, rng.uniform(least[0], greatest[0]))
    else:
        size = rng.uniform(least, greatest)
    yaw = rng.choice([0, np.pi / 2]) + rng.choice([0.0, 1.0]) * rng.uniform(-0.8, 0.8)

    frame = rng.integers(len(path.yaw))
    bearing = path.yaw[frame] + rng.uniform(-0.4, 0.4) * angle
    ahead = np.array([np.sin(bearing), 0, np.cos(bearing)])
    place = path.positions[frame] + rng.uniform(1.2, 4.0) * ahead
    footprint = np.hypot(size[0], size[2]) if shape == "box" else size[0]
    limit = half - footprint - 0.02
    place = np.clip(place, -limit, limit)
    place[1] = half[1] - size[1]

    colors = _colors(rng, hue, rng.uniform(0.4, 0.65), rng.uniform(0.4, 0.85), 0.35)
    diagonal = np.array([[np.sqrt(0.5), 0, np.sqrt(0.5)], [0, 1, 0]])
    texture = _texture(rng, colors, (0.4, 1.4), diagonal)
    return raycast.Solid(shape, _vector(*place), _vector(*size), float(yaw), texture)


def _is_clear(solid, path, others) -> bool:
    """Whether a solid, seen from above as a disc, keeps off the cameras and the other discs."""

    def radius(piece):
        return float(np.hypot(*piece.half[[0, 2]]) if piece.shape == "box" else piece.half[0])

    def gap(place):
        return float(np.hypot(*(place - solid.center)[[0, 2]])) - radius(solid)

    off_walk = all(gap(position) > CLEARANCE for position in path.positions)
    return off_walk and all(gap(other.center) > 0.9 * radius(other) for other in others)


def _decorate(rng, half, hue) -> tuple[raycast.Panel, ...]:
    """A window, a door or a picture on each wall, and often a rug."""
    panels = []
    for face in (0, 1, 4, 5):
        kind = rng.choice(["window", "door", "picture", "none"], p=[0.3, 0.2, 0.35, 0.15])
        if kind != "none":
            panels.append(_panel(rng, half, face, kind, hue))
    if rng.random() < 0.7:
        panels.append(_panel(rng, half, raycast.FLOOR, "rug", hue))
    return tuple(panels)


def _panel(rng, half, face, kind, hue) -> raycast.Panel:
    normal, side = face // 2, 2 - face // 2  # side: the level axis along a wall
    size, center = np.full(3, np.inf), np.zeros(3)
    center[normal] = half[normal] * (1 if face % 2 else -1)
    accent = hue + rng.uniform(0.35, 0.65)
    if kind == "rug":
        size[[0, 2]] = rng.uniform(0.35, 0.6, 2) * half[[0, 2]]
        center[[0, 2]] = rng.uniform(-0.3, 0.3, 2) * half[[0, 2]]
        colors = _colors(rng, accent, rng.uniform(0.3, 0.55), rng.uniform(0.45, 0.8), 0.3)
        border, frame = 0.1, _color(accent, 0.4, 0.9)
    elif kind == "door":
        size[[side, 1]] = rng.uniform(0.38, 0.5), 1.02
        center[1] = half[1] - size[1]
        colors = _colors(rng, rng.uniform(*WOOD), 0.55, rng.uniform(0.35, 0.6), 0.1)
        border, frame = 0.08, _color(hue, 0.05, 0.95)
    elif kind == "window":
        size[[side, 1]] = rng.uniform(0.45, 0.9), rng.uniform(0.45, 0.65)
        center[1] = -0.2
        colors = _colors(rng, rng.uniform(*SKY), 0.25, 0.9, 0.2)
        border, frame = 0.09, _color(hue, 0.05, 0.95)
    else:
        size[[side, 1]] = rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.5)
        center[1] = -0.25
        colors = _colors(rng, accent, rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.75), 0.5)
        border, frame = 0.07, _color(rng.uniform(*WOOD), 0.5, rng.uniform(0.15, 0.45))
    if kind != "rug":
        center[side] = rng.uniform(-1, 1) * max(half[side] - size[side] - 0.3, 0)
    place, texture = _vector(*center), _texture(rng, colors, (0.5, 1.5), _tangents(face))
    return raycast.Panel(face, place, _vector(*size), texture, frame, border, kind == "window")


@dataclasses.dataclass(frozen=True)
class CameraPath:
    """The cameras of one clip."""

    positions: Float[np.ndarray, "n 3"]  # camera centres, in metres
    yaw: Float[np.ndarray, " n"]  # headings in radians, 0 along z, positive to the right
    pitch: Float[np.ndarray, " n"]  # radians, positive downwards

    def w2c(self) -> Float32[np.ndarray, "n 3 4"]:
        """OpenCV world-to-camera matrices `[R | t]`, as they are stored."""
        forward, right = headings(self.yaw, self.pitch), headings(self.yaw + np.pi / 2)
        rotation = np.stack([right, np.cross(forward, right), forward], axis=1)  # rows x, y, z
        translation = -np.einsum("nij,nj->ni", rotation, self.positions)
        return np.concatenate([rotation, translation[..., None]], axis=2).astype(np.float32)


def headings(
    yaw: Float[np.ndarray, " n"], pitch: Float[np.ndarray, " n"] | float = 0.0
) -> Float[np.ndarray, "n 3"]:
    """Unit vectors that look along `yaw` and `pitch`."""
    level = np.cos(pitch)
    return np.stack([np.sin(yaw) * level, np.sin(pitch) + 0 * yaw, np.cos(yaw) * level], axis=1)


def sample_path(
    rng: np.random.Generator, half: raycast.Vector, num_frames: int, config: SceneConfig
) -> CameraPath:
    """Draws walks until one stays inside the room and keeps some room ahead of it.

    `half` is half the width, height and depth of the room, in metres. UserError where no such walk
    is found, as the motion is too long for the room.
    """
    for _ in range(MAX_TRIES):
        path = _draw_path(rng, half, num_frames, config)
        inside = np.abs(path.positions[:, [0, 2]]) < half[[0, 2]] - WALL_MARGIN
        if inside.all() and _distance_ahead(path, half).min() > FREE_VIEW:
            return path
    path, room = "{} to {} m".format(*config.motion), f"{2 * half[0]:.1f} x {2 * half[2]:.1f} m"
    raise UserError(f"found no camera path of {path} in a room of {room}; ask for less motion")


def _draw_path(rng, half, num_frames, config) -> CameraPath:
    """A gently bent walk, ahead or sideways, while the camera turns; it may leave the room."""
    u = rng.uniform
    ahead = rng.random() < 0.5
    yaw_start, turned = u(-np.pi, np.pi), u(-config.turn, config.turn)
    bearing = yaw_start + turned / 2  # walks are aimed relative to the mean heading
    bearing += u(-0.5, 0.5) if ahead else rng.choice([-1, 1]) * u(1.0, 2.0)
    length, bend = u(*config.motion), u(-0.15, 0.15)

    time = np.linspace(0.0, 1.0, num_frames)
    ease = u(0.0, 0.5)  # how softly the walk starts and stops
    step = time - ease * np.sin(2 * np.pi * time) / (2 * np.pi)
    side = 4 * bend * step * (1 - step)
    along, across = headings(np.array([bearing, bearing + np.pi / 2]))
    start = u(-1, 1, 3) * half
    start[1] = half[1] - u(1.2, 1.65)  # eye height above the floor
    positions = start + length * (step[:, None] * along + side[:, None] * across)
    positions[:, 1] += 0.03 * np.sin(2 * np.pi * (u(0.3, 0.8) * time + u(0, 1)))

    sway = u(0, 0.03) * np.sin(2 * np.pi * (time + u(0, 1)))
    pitch = u(-0.02, 0.2) + u(-0.06, 0.06) * time
    return CameraPath(positions, yaw_start + turned * step + sway, pitch)


def _distance_ahead(path: CameraPath, half) -> np.ndarray:
    """Metres from each camera to the wall in its level viewing direction."""
    level = headings(path.yaw)[:, [0, 2]]
    room = half[[0, 2]] * np.sign(level) - path.positions[:, [0, 2]]
    return (room / np.where(level == 0, 1e-9, level)).min(axis=1)
