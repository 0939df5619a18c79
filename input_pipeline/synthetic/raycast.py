"""Furnished rooms and a ray caster for them: exact pictures of exact cameras, in NumPy.

A room is a box seen from inside, its furniture boxes, balls and cylinders. All are convex, so that
one routine serves them: brought into the axes where a solid is the unit shape, a ray enters it at
one distance and leaves it at another. Surfaces are matt (they look alike from every side) and
carry soft patterns without fine detail, so that small pictures of them do not alias.

Axes are OpenCV's (x right, y down, z forward), lengths metres, colours in [0, 1]. Points and rays
are stored as `[3, n]`: each coordinate contiguous.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float32, Int8, UInt8

Points = Float32[np.ndarray, "3 n"]
Vector = Float32[np.ndarray, "3"]
Pose = Float32[np.ndarray, "3 4"]  # OpenCV world-to-camera
Intrinsics = Float32[np.ndarray, "4"]  # in shares of the picture's sides
Numbers = Float32[np.ndarray, " n"]
Surfaces = Int8[np.ndarray, " n"]
FACES = 6  # surfaces 0 to 5 are the room's faces -x, +x, -y, +y, -z, +z; then come the solids
CEILING, FLOOR = 2, 3


@dataclasses.dataclass(frozen=True)
class Texture:
    """Two colours mixed by two plane waves through space: a pattern carved out of the solid."""

    colors: Float32[np.ndarray, "2 3"]  # the two colours
    waves: Float32[np.ndarray, "2 4"]  # radians per metre along x, y, z, and phase, of each
    mix: Vector  # weights of the first wave, the second, and their product (a checker)
    sharpness: float  # how quickly one colour gives way to the other

    def __call__(self, points: Points) -> Points:
        """Colours at points, given in the axes of the solid."""
        x, y, z = points
        first, second = (np.sin(a * x + b * y + c * z + phase) for a, b, c, phase in self.waves)
        weight = self.mix[0] * first + self.mix[1] * second + self.mix[2] * (first * second)
        weight *= self.sharpness
        weight /= np.sqrt(1 + weight * weight)  # a soft step from -1 to 1
        mean, swing = self.colors.mean(axis=0), (self.colors[1] - self.colors[0]) / 2
        return mean[:, None] + swing[:, None] * weight


@dataclasses.dataclass(frozen=True)
class Solid:
    """A piece of furniture: a unit box, ball or (upright) cylinder, stretched, turned and moved."""

    shape: str
    center: Vector
    half: Vector
    yaw: float
    texture: Texture

    def turn(self, vectors: Points, back: bool = False) -> Points:
        """Vectors of the room in the solid's axes (`back`: the other way)."""
        sine, cosine = np.float32(np.sin(self.yaw)), np.float32(np.cos(self.yaw))
        x, y, z = vectors
        sine = -sine if back else sine
        return np.stack([cosine * x - sine * z, y, sine * x + cosine * z])

    def unit(self, points: Points) -> Points:
        """Points of the room in the axes where this solid is the unit shape."""
        return self.turn(points - self.center[:, None]) / self.half[:, None]

    def interval(self, origin: Vector, directions: Points):
        """Where each ray enters and leaves the solid; it enters after it leaves if it misses."""
        directions = self.turn(directions) / self.half[:, None]
        return SHAPES[self.shape](self.unit(origin[:, None])[:, 0], directions)

    def normals(self, points: Points) -> Points:
        """Outward unit normals at points of the surface."""
        unit = self.unit(points)
        if self.shape == "box":
            unit *= np.abs(unit) == np.abs(unit).max(axis=0)
        elif self.shape == "cylinder":
            cap = np.abs(unit[1]) > np.hypot(unit[0], unit[2])
            unit *= np.stack([~cap, cap, ~cap])
        normals = self.turn(unit / self.half[:, None], back=True)
        return normals / np.sqrt((normals * normals).sum(axis=0))

    def reach(self, points: Points) -> Numbers:
        """Level distance from the axis over the solid's own: 1 at its walls, 0 at its axis."""
        x, _, z = self.unit(points)
        return np.maximum(np.abs(x), np.abs(z)) if self.shape == "box" else np.hypot(x, z)


def _slabs(origin, directions):
    inverse = 1 / (directions + np.float32(1e-20))
    middle, width = -origin[:, None] * inverse, np.abs(inverse)
    return (middle - width).max(axis=0), (middle + width).min(axis=0)


def _ball(origin, directions):
    square = (directions * directions).sum(axis=0)
    middle = -(origin[:, None] * directions).sum(axis=0) / square
    width = middle * middle - ((origin * origin).sum() - 1) / square
    missed = width <= 0
    width = np.sqrt(np.maximum(width, 0))
    return np.where(missed, np.float32(np.inf), middle - width), middle + width


def _cylinder(origin, directions):
    enter, leave = _ball(origin[[0, 2]], directions[[0, 2]])
    enter_caps, leave_caps = _slabs(origin[[1]], directions[[1]])
    return np.maximum(enter, enter_caps), np.minimum(leave, leave_caps)


SHAPES = {"box": _slabs, "ball": _ball, "cylinder": _cylinder}


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture, window, door or rug: an upright, framed rectangle on one face of the room."""

    face: int  # number of the face that it lies on
    center: Vector  # its middle, in the room's axes
    half: Vector  # half its sides; infinite along the face's normal
    texture: Texture  # what it shows
    frame: Vector  # colour of the frame, and of the bars of a window
    border: float  # width of the frame, in metres
    window: bool = False  # has crossed bars, and shines by itself


@dataclasses.dataclass(frozen=True)
class Room:
    """Everything that can be seen."""

    half: Vector  # half the width, height and depth; the room is centred at the origin
    faces: tuple[Texture, ...]  # textures of the six faces, in the order of the face numbers
    panels: tuple[Panel, ...]  # rectangles on the faces
    solids: tuple[Solid, ...]  # the furniture
    lamp: Vector  # position of the light


def cast(room: Room, origin: Vector, directions: Points) -> tuple[Numbers, Surfaces]:
    """Distances, in lengths of the directions, and numbers of the surfaces that rays first meet."""
    directions = directions + np.float32(1e-20)  # no zeros to divide by
    exits = (np.copysign(room.half[:, None], directions) - origin[:, None]) / directions
    distance = exits.min(axis=0)
    along, upright, _ = exits == distance
    right, down, ahead = (directions > 0).astype(np.int8)
    surface = np.where(along, right, np.where(upright, 2 + down, 4 + ahead))
    for number, solid in enumerate(room.solids, start=FACES):
        enter, leave = solid.interval(origin, directions)
        hit = (enter < leave) & (enter > 0) & (enter < distance)
        np.copyto(distance, enter, where=hit)
        np.copyto(surface, np.int8(number), where=hit)
    return distance, surface


def shade(room: Room, points: Points, surface: Surfaces) -> Points:
    """Colours of points on the given surfaces: texture, lamp, and darkness where things meet."""
    order = np.argsort(surface, kind="stable")  # one contiguous run of points for each surface
    points = np.take(points, order, axis=1)
    colors = np.empty_like(points)
    bounds = np.searchsorted(surface[order], np.arange(FACES + len(room.solids) + 1))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if start < stop:
            run, paint = slice(start, stop), _paint_face if number < FACES else _paint_solid
            colors[:, run] = paint(room, points[:, run], number)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return np.take(colors, back, axis=1)


def render(
    room: Room, w2c: Pose, normalized_fxfycxcy: Intrinsics, height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a camera, four rays a pixel; the upper left one's centre is (0.5, 0.5)."""
    origin, directions = rays(w2c, normalized_fxfycxcy, height * 2, width * 2)
    distance, surface = cast(room, origin, directions)
    colors = shade(room, origin[:, None] + directions * distance, surface)
    colors = colors.reshape(3, height, 2, width, 2).sum(axis=2).sum(axis=3)
    colors = np.rint(np.clip(colors * (255 / 4), 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(colors.transpose(1, 2, 0))


def rays(
    w2c: Pose, normalized_fxfycxcy: Intrinsics, height: int, width: int
) -> tuple[Vector, Points]:
    """Camera centre, and directions (of depth 1) through the pixel centres, row by row."""
    rotation, translation = np.split(w2c.astype(np.float64), [3], axis=1)
    origin = -np.linalg.solve(rotation, translation)[:, 0]
    fx, fy, cx, cy = normalized_fxfycxcy.astype(np.float64)
    x = ((np.arange(width) + 0.5) / width - cx) / fx
    y = ((np.arange(height) + 0.5) / height - cy) / fy
    right, down, forward = np.linalg.inv(rotation).T[:, :, None, None].astype(np.float32)
    directions = right * x.astype(np.float32) + down * y.astype(np.float32)[:, None] + forward
    return origin.astype(np.float32), directions.reshape(3, -1)


def _paint_solid(room: Room, points: Points, number: int) -> Points:
    solid = room.solids[number - FACES]
    albedo = solid.texture(solid.turn(points - solid.center[:, None]))
    contact = 1 - 0.35 * np.exp((points[1] - room.half[1]) / np.float32(0.12))
    return albedo * (contact * _light(room, points, solid.normals(points)))


def _paint_face(room: Room, points: Points, face: int) -> Points:
    normals = np.zeros((3, 1), np.float32)
    normals[face // 2] = 1 - 2 * (face % 2)  # inwards
    near = np.exp((np.abs(points) - room.half[:, None]) / np.float32(0.3)).sum(axis=0) - 1
    brightness = _light(room, points, normals) * (1 - 0.22 * near)  # edges and corners are darker
    if face == FLOOR:
        for solid in room.solids:
            brightness *= 1 - _contact_shadow(room, solid, points)
    colors = room.faces[face](points) * brightness
    for panel in room.panels:
        if panel.face == face:
            _paint_panel(panel, points, brightness, colors)
    return colors


def _light(room: Room, points: Points, normals: Float32[np.ndarray, "3 #n"]) -> Numbers:
    """Light from the lamp, and from everywhere; a little more of it from above."""
    toward = room.lamp[:, None] - points
    square = (toward * toward).sum(axis=0)
    facing = np.maximum((toward * normals).sum(axis=0), 0) / np.sqrt(square)
    return 0.56 - 0.08 * normals[1] + 0.7 * facing / (1 + square / 12)


def _contact_shadow(room: Room, solid: Solid, points: Points) -> Numbers:
    size = solid.half[[0, 2]].mean()
    outside = np.maximum(solid.reach(points) - np.float32(0.85), 0) * size / np.float32(0.3)
    gap = room.half[1] - solid.center[1] - solid.half[1]  # what hangs high casts little shadow
    return np.float32(0.5) * np.exp(-outside * outside - 3 * gap)


def _paint_panel(panel: Panel, points: Points, brightness, colors: Points) -> None:
    """Replaces, in place, the colours of those points of the face that the panel covers."""
    offset = np.abs(points - panel.center[:, None])
    inset = (panel.half[:, None] - offset).min(axis=0)  # distance from the panel's edge
    (which,) = np.nonzero(inset > 0)
    if not which.size:
        return
    frame = inset[which] < panel.border
    if panel.window:
        sides = np.isfinite(panel.half)
        frame |= (offset[sides][:, which] < panel.border / 3).any(axis=0)
    shine = np.float32(1) if panel.window else brightness[which]
    colors[:, which] = np.where(
        frame, panel.frame[:, None] * brightness[which], panel.texture(points[:, which]) * shine
    )
