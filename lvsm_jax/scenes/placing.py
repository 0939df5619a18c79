"""Where the inputs lie among the views of a path or a clip, by rule."""

from collections.abc import Sequence

import numpy as np

from lvsm_jax.common.errors import UserError

ARRANGEMENTS = ("spread", "contiguous")


def place_inputs(free: Sequence[int], count: int, arrangement: str) -> list[int]:
    """`count` of the positions `free`, in order: those of the views that are no target.

    `spread` ones lie evenly from the first to the last, `contiguous` ones are neighbours in the
    middle; one input is the middle one. UserError where there are fewer than `count`.
    """
    if not 1 <= count <= len(free):
        raise UserError(f"{count} inputs, but a window has {len(free)} views beside its targets")
    first = (len(free) - count) // 2
    chosen = np.arange(first, first + count)
    if arrangement == "spread" and count > 1:
        chosen = np.linspace(0, len(free) - 1, count).round().astype(int)
    return [int(free[i]) for i in chosen]
