"""Numbers that no camera has: out of reach of float32, or of sense.

Of what lies within, all that models compute is finite in float32. NumPy only.
"""

import numpy as np
from jaxtyping import Float

from lvsm_jax.common.errors import UserError

# Focal lengths over sides of the picture: fields of view from 179.9° to 0.0006°.
SHORTEST_FOCAL, LONGEST_FOCAL = 1e-3, 1e5
FARTHEST_CENTRE = 1e3  # distance of the principal point from the picture's corner, in sides
LARGEST_SHARE = 30.0  # of what is given in sides, beyond which it is pixels: a field of view of 2°
SMALLEST_PIXELS = 4.0  # of a focal length, below which it is shares of the sides,
SMALLEST_SIDE = 32  # unless the picture is smaller
FARTHEST_POSITION = 1e12  # in any world: if it is metres, float64 tells a tenth of a millimetre
FARTHEST_IN_SCENE = 1e9  # in float32, where the cameras of a scene are some units apart


def check_intrinsics(fxfycxcy: Float[np.ndarray, "*n 4"], width: int, height: int) -> None:
    """Raises UserError unless focal lengths and principal points are those of some lens.

    In pixels of a picture of `width` × `height`, or in shares of its sides, which then are 1.
    """
    values = np.asarray(fxfycxcy, np.float64)
    where = "shares of the sides" if width == height == 1 else f"pixels of {width}×{height}"
    if not np.isfinite(values).all():
        raise UserError("fxfycxcy is not finite")
    shares = values / np.array([width, height] * 2, np.float64)
    focal, centre = shares[..., :2], np.abs(shares[..., 2:])
    outside = (focal < SHORTEST_FOCAL) | (focal > LONGEST_FOCAL)
    if outside.any():
        first = values[..., :2][outside.any(-1)][0].tolist()
        raise UserError(
            f"fxfycxcy has focal lengths {first}, expected {SHORTEST_FOCAL:g} to "
            f"{LONGEST_FOCAL:,.0f} times the picture's sides, in {where}"
        )
    outside = centre > FARTHEST_CENTRE
    if outside.any():
        first = values[..., 2:][outside.any(-1)][0].tolist()
        raise UserError(
            f"fxfycxcy has the principal point {first}, expected one within "
            f"{FARTHEST_CENTRE:,.0f} times the picture's sides, in {where}"
        )


def check_pixels(fxfycxcy: Float[np.ndarray, "4"], width: int, height: int) -> None:
    """`check_intrinsics`, and raises UserError for what is shares of the sides instead."""
    check_intrinsics(fxfycxcy, width, height)
    if fxfycxcy[:2].min() < SMALLEST_PIXELS and min(width, height) >= SMALLEST_SIDE:
        raise UserError(
            f"fxfycxcy is {fxfycxcy.tolist()} for a picture of {width}×{height}: expected pixels, "
            "not shares of its sides"
        )


def check_shares(fxfycxcy: Float[np.ndarray, "4"]) -> None:
    """`check_intrinsics` of shares of sides, and raises UserError for what is pixels instead."""
    check_intrinsics(fxfycxcy, 1, 1)
    if fxfycxcy.max() > LARGEST_SHARE:
        raise UserError(
            f"fxfycxcy is {fxfycxcy.tolist()}: expected shares of the picture's width and height, "
            "not pixels"
        )


def check_positions(
    name: str, positions: Float[np.ndarray, "*n 3"], farthest: float = FARTHEST_POSITION
) -> None:
    """Raises UserError for a position that is out of reach, or not finite."""
    found = np.abs(np.asarray(positions, np.float64)).max(initial=0)
    if not found <= farthest:  # NaN is not either
        raise UserError(f"{name} has a coordinate of {found:g}, expected at most {farthest:g}")
