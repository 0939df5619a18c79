"""Which maps are believed. NumPy only.

A small reprojection error proves nothing: wrong maps of three photographs had 0.4 pixels, right
ones of thirty 0.9. What tells them apart is how many photographs joined, whether the lens is one
that photographs are taken with, and whether another way of mapping comes to the same cameras.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

SHARE = 0.8  # of the photographs that must join
FEWEST_POINTS = 30  # seen by a photograph, below which it hangs by nothing
NARROWEST, WIDEST = 30.0, 110.0  # fields of view of the longer side, in degrees
LARGEST_K = 0.3
EXIF_RATIO = 1.3  # of a focal length to that of EXIF, or the reverse
# How far two maps may differ at a photograph that both have.
ROTATION, POSITION = 2.0, 0.02  # degrees; share of the cameras' extent
FEW_POINTS = 200  # seen by a photograph in the mean, below which a map is not sure


@dataclasses.dataclass(frozen=True)
class Lens:
    """A lens with one radial coefficient, in pixels."""

    focal: float
    centre: tuple[float, float]
    k: float
    size: tuple[int, int]  # width and height

    @property
    def field_of_view(self) -> float:
        """Of the longer side, in degrees."""
        return math.degrees(2 * math.atan(max(self.size) / 2 / self.focal))


@dataclasses.dataclass(frozen=True)
class Map:
    """Cameras that a method found, by the names of photographs."""

    method: str
    w2c: dict[str, Float64[np.ndarray, "4 4"]]
    lenses: dict[str, Lens]
    points: dict[str, int]  # seen by a photograph
    reprojection: float  # mean error in pixels

    @property
    def held(self) -> list[str]:
        """Photographs that points enough hold in their places."""
        return [name for name, count in self.points.items() if count >= FEWEST_POINTS]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two maps differ at each photograph that both have, after the best similarity."""

    names: list[str]
    rotation: Float64[np.ndarray, " n"]  # degrees
    position: Float64[np.ndarray, " n"]  # shares of the cameras' extent

    @property
    def agreed(self) -> list[str]:
        """Photographs at which they are the same."""
        same = (self.rotation <= ROTATION) & (self.position <= POSITION)
        return [name for name, one in zip(self.names, same, strict=True) if one]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which photographs of a map are believed, and why no others."""

    joined: list[str]
    left_out: dict[str, str]  # the others, with why
    notes: list[str]
    refused: str | None = None  # why nothing is believed, and what to do


def doubts_of_lenses(found: Map, focal_by_exif: Mapping[str, float | None]) -> list[str]:
    """What speaks against the lenses of a map, a phrase for each lens; empty for good ones."""
    doubts = {}
    for name, lens in found.lenses.items():
        exif = focal_by_exif.get(name)
        if not NARROWEST <= lens.field_of_view <= WIDEST:
            doubt = f"a field of view of {lens.field_of_view:.0f}°"
        elif abs(lens.k) > LARGEST_K:
            doubt = f"a lens that distorts by k = {lens.k:.2f}"
        elif exif and not 1 / EXIF_RATIO <= lens.focal / exif <= EXIF_RATIO:
            doubt = f"a focal length {lens.focal / exif:.2f} times that of EXIF"
        else:
            continue
        doubts.setdefault(doubt, name)
    return [f"{doubt} ({name})" for doubt, name in doubts.items()]


def compare(one: Map, other: Map) -> Agreement:
    """Where two maps differ. The similarity between their worlds is a robust one: by medians."""
    names = [name for name in one.w2c if name in other.w2c]
    if len(names) < 2:
        return Agreement(names, *(np.full(len(names), np.inf),) * 2)
    a, b = (np.stack([found.w2c[name] for name in names]) for found in (one, other))
    turns = np.einsum(
        "nji,njk->nik", b[:, :3, :3], a[:, :3, :3]
    )  # from the world of one to other's
    between = _angles(turns[:, None] @ np.swapaxes(turns, 1, 2)[None])
    turn = turns[between.sum(0).argmin()]
    centres_a, centres_b = centres_of(a) @ turn.T, centres_of(b)
    far_a, far_b = _distances(centres_a), _distances(centres_b)
    pairs = np.triu_indices(len(names), 1)
    scale = np.median(far_b[pairs] / np.maximum(far_a[pairs], 1e-12))
    offset = np.median(centres_b - scale * centres_a, axis=0)
    error = np.linalg.norm(scale * centres_a + offset - centres_b, axis=-1)
    return Agreement(names, _angles(turns @ turn.T), error / max(far_b.max(), 1e-12))


def centres_of(w2c: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "n 3"]:
    """Positions of cameras."""
    return -np.einsum("nji,nj->ni", w2c[:, :3, :3], w2c[:, :3, 3])


def _distances(points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n n"]:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def _angles(rotations: Float64[np.ndarray, "*n 3 3"]) -> Float64[np.ndarray, "*n"]:
    cosines = (np.trace(rotations, axis1=-2, axis2=-1) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))
