"""Pairs of photographs: which are matched, and the points that were. NumPy only."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

_ALL_PAIRS = 60  # photographs up to which each is matched with each
_NEIGHBOURS = 8  # frames after each that it is matched with, and then
_FARTHER = (16, 32)  # those so many after it
_LOOP_FRAMES = 24  # so many, evenly spaced, are matched with each other: places seen again

Places = Float64[np.ndarray, "n 2"]  # pixels; the centre of the first is at (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two photographs with points that were matched by their looks alone."""

    names: tuple[str, str]
    places: tuple[Places, Places]


def pairs_to_match(count: int, *, in_order: bool) -> list[tuple[int, int]]:
    """Pairs of photographs 0 to `count`: all, or of many, or frames in order, a choice of them.

    Of these are neighbours, those some way apart, and some of all parts with each other, for places
    to which the camera came back.
    """
    if count <= _NEIGHBOURS + 1 or (count <= _ALL_PAIRS and not in_order):
        return list(itertools.combinations(range(count), 2))
    steps = (*range(1, _NEIGHBOURS + 1), *_FARTHER)
    near = {(i, i + step) for i in range(count) for step in steps if i + step < count}
    spread = np.linspace(0, count - 1, min(_LOOP_FRAMES, count)).round().astype(int)
    return sorted(near | set(itertools.combinations(spread.tolist(), 2)))


def save_pairs(file: pathlib.Path, pairs: Sequence[Pair]) -> None:
    """Writes what `load_pairs` reads."""
    arrays = {}
    for i, pair in enumerate(pairs):
        arrays[f"names_{i}"] = np.array(pair.names)
        arrays[f"places_{i}"] = np.stack(pair.places)
    np.savez(file, **arrays)


def load_pairs(file: pathlib.Path) -> list[Pair]:
    """The pairs of a file."""
    with np.load(file) as arrays:
        return [
            Pair(tuple(arrays[f"names_{i}"].tolist()), tuple(arrays[f"places_{i}"]))
            for i in range(len(arrays.files) // 2)
        ]
