"""Lenses that bend rays, and pictures as a pinhole would have taken them. NumPy only.

The model is that of Brown and Conrady, which COLMAP, OpenCV, nerfstudio, Metashape and others
share: with (x, y) where a ray meets the plane at distance 1 and r² = x² + y², it is seen at

    x (1 + k1 r² + k2 r⁴ + …) / (1 + k4 r² + k5 r⁴ + k6 r⁶) + 2 p1 x y + p2 (r² + 2 x²)

and the like for y. Pixels are as everywhere here: the centre of the first is at (0.5, 0.5).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, UInt8

from lvsm_jax.common.errors import UserError

RATIONAL = "FULL_OPENCV"  # the model in which k4 to k6 divide

_WIDEST, _NARROWEST = 0.5, 2.0  # focal length of the pinhole over the lens's own
_BORDER = 64  # points of a side by which is judged what a lens shows
_BAND = 500_000  # pixels at a time


@dataclasses.dataclass(frozen=True)
class Distortion:
    """Coefficients of a lens, all zero for a pinhole."""

    radial: tuple[float, ...] = ()  # of r², r⁴, …
    divisor: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)  # p1, p2

    @classmethod
    def of(cls, model: str, parameters: Mapping[str, float]) -> "Distortion":
        """From parameters by name: `k` or `k1` to `k6`, `p1`, `p2`; of `RATIONAL` k4 to k6 divide.

        UserError that names others, unless they are zero.
        """
        values = {("k1" if name == "k" else name): value for name, value in parameters.items()}
        known = [*(f"k{i}" for i in range(1, 7)), "p1", "p2"]
        if other := [f"{name} = {v:g}" for name, v in values.items() if v and name not in known]:
            raise UserError(
                f"the lens distorts by {', '.join(other)}, and only {', '.join(known)} can be "
                "undone: undistort the images first, for example with colmap image_undistorter"
            )
        k = [float(values.get(name, 0.0)) for name in known[:6]]
        split = 3 if model == RATIONAL else 6
        tangential = float(values.get("p1", 0.0)), float(values.get("p2", 0.0))
        return cls(tuple(k[:split]), tuple(k[split:]), tangential)

    def __bool__(self) -> bool:
        return any((*self.radial, *self.divisor, *self.tangential))

    def apply(self, rays: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Where the lens shows rays, both in the plane at distance 1."""
        x, y = rays[..., 0], rays[..., 1]
        square = x * x + y * y
        factor = self._polynomial(self.radial, square)
        if any(self.divisor):
            factor = factor / self._polynomial(self.divisor, square)
        if not any(self.tangential):
            return rays * factor[..., None]
        p1, p2 = self.tangential
        across = 2 * x * y
        return np.stack(
            [
                x * factor + p1 * across + p2 * (square + 2 * x * x),
                y * factor + p2 * across + p1 * (square + 2 * y * y),
            ],
            axis=-1,
        )

    @staticmethod
    def _polynomial(coefficients: tuple[float, ...], square: np.ndarray) -> np.ndarray:
        result = np.zeros_like(square)
        for coefficient in reversed(coefficients):
            result = (result + coefficient) * square
        return 1 + result

    def reach(self, radius: float) -> bool:
        """Whether rays up to a radius keep their order from the middle: else the picture folds."""
        radii = np.linspace(0, radius, 256)
        seen = self.apply(np.stack([radii, np.zeros_like(radii)], axis=-1))[:, 0]
        return bool(np.isfinite(seen).all() and (np.diff(seen) > 0).all())


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """A lens with its intrinsics, in pixels of a picture of width × height."""

    fxfycxcy: Float64[np.ndarray, "4"]
    distortion: Distortion

    def pinhole(self, width: int, height: int) -> Float64[np.ndarray, "4"]:
        """Intrinsics of the widest pinhole camera of a picture of that size that it fills.

        The principal point stays where it is, and pixels keep their shape. UserError where even a
        narrow one is not filled.
        """
        steps = np.linspace(0, 1, _BORDER)
        u = 0.5 + steps * (width - 1)
        v = 0.5 + steps * (height - 1)
        sides = [(u, 0.5), (u, height - 0.5), (0.5, v), (width - 0.5, v)]
        border = np.concatenate([np.stack(np.broadcast_arrays(*side), -1) for side in sides])
        largest = np.array([width, height]) - 0.5 + 1e-6

        def fills(zoom: float) -> bool:
            rays = (border - self.fxfycxcy[2:]) / (zoom * self.fxfycxcy[:2])
            if not self.distortion.reach(np.linalg.norm(rays, axis=-1).max()):
                return False
            seen = self._pixels(rays)
            return bool((seen >= 0.5 - 1e-6).all() and (seen <= largest).all())

        if not fills(_NARROWEST):
            raise UserError("the lens distorts so much that no pinhole camera shows its picture")
        low, high = _WIDEST, _NARROWEST
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if fills(middle) else (middle, high)
        return self.fxfycxcy * [high, high, 1, 1]

    def undistort(
        self, pixels: UInt8[np.ndarray, "h w 3"], fxfycxcy: Float64[np.ndarray, "4"]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The picture that a pinhole camera takes; between pixels it is linear."""
        height, width, _ = pixels.shape
        rows = max(1, _BAND // width)
        return np.concatenate(
            [
                self._band(pixels, fxfycxcy, np.arange(top, min(top + rows, height)))
                for top in range(0, height, rows)
            ]
        )

    def _band(
        self, pixels: UInt8[np.ndarray, "h w 3"], fxfycxcy: np.ndarray, rows: np.ndarray
    ) -> UInt8[np.ndarray, "n w 3"]:
        height, width, _ = pixels.shape
        places = np.stack(np.meshgrid(np.arange(width) + 0.5, rows + 0.5), axis=-1)
        seen = self._pixels((places - fxfycxcy[2:]) / fxfycxcy[:2]) - 0.5
        seen = np.clip(seen, 0, [width - 1, height - 1])
        first = np.minimum(seen.astype(np.int64), [max(width - 2, 0), max(height - 2, 0)])
        right, down = np.moveaxis((seen - first).astype(np.float32), -1, 0)[..., None]
        x, y = first[..., 0], first[..., 1]
        after_x, after_y = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
        above = pixels[y, x] * (1 - right) + pixels[y, after_x] * right
        below = pixels[after_y, x] * (1 - right) + pixels[after_y, after_x] * right
        return np.rint(above * (1 - down) + below * down).astype(np.uint8)

    def _pixels(self, rays: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        return self.distortion.apply(rays) * self.fxfycxcy[:2] + self.fxfycxcy[2:]
