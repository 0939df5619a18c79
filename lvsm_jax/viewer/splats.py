"""A GS-LRM's Gaussians in a visitor's browser, which draws them itself.

While one moves nothing waits for the server. Where they are sorted and blended, browsers differ a
little from `lvsm_jax.gaussians`, which renders what is compared, downloaded and made into videos.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation

from lvsm_jax.gaussians.gaussians import Gaussians
from lvsm_jax.viewer.viewpoint import Viewpoint

_LARGEST = 3e4  # of covariances, which are sent as float16
_FINEST = 1e3  # units that one of the page is cut into, where that leaves room


class Splats:
    """The Gaussians of the world in which a visitor is, on their page."""

    def __init__(self, scene: Any, viewpoint: Viewpoint):
        self._scene, self._viewpoint = scene, viewpoint
        self._shown: Gaussians | None = None  # those of which `_handle` is
        self._handle: Any = None
        self._magnification = 0.0

    def update(self, gaussians: Gaussians, *, visible: bool) -> None:
        """Shows these Gaussians, in the world of the cameras, or hides them."""
        moved = self._viewpoint.magnification != self._magnification
        if visible and (gaussians is not self._shown or moved):
            self._put(gaussians)
        if self._handle is not None and self._handle.visible != visible:
            self._handle.visible = visible

    def hide(self) -> None:
        """Hides them until the next `update`."""
        if self._handle is not None:
            self._handle.visible = False

    def clear(self) -> None:
        """Takes them off the page."""
        if self._handle is not None:
            self._handle.remove()
        self._shown = self._handle = None

    def _put(self, gaussians: Gaussians) -> None:
        frame = self._viewpoint.frame
        means, covariances = on_page(gaussians, frame.axes, frame.origin, frame.scale)
        unit = min(_FINEST, (_LARGEST / np.abs(covariances).max()) ** 0.5)
        # viser takes what comes under a name that is taken for what is there.
        self._handle = self._scene.add_gaussian_splats(
            "/gaussians",
            (unit * means).astype(np.float32),
            (unit**2 * covariances).astype(np.float32),
            np.clip(gaussians.colors, 0, 1),
            gaussians.opacities[:, None],
            scale=1 / unit,
        )
        self._shown, self._magnification = gaussians, self._viewpoint.magnification


def behind(level: float) -> UInt8[np.ndarray, "8 8 3"]:
    """A picture of one grey level, 0 to 1, for what no Gaussian covers."""
    return np.full((8, 8, 3), round(255 * level), np.uint8)


def on_page(
    gaussians: Gaussians,
    axes: Float[np.ndarray, "3 3"],
    origin: Float[np.ndarray, "3"],
    scale: float,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3 3"]]:
    """Centres and covariances where x has become `scale · axes · (x − origin)`."""
    means = scale * (np.asarray(gaussians.means, np.float64) - origin) @ axes.T
    turns = Rotation.from_quat(np.roll(gaussians.quaternions, -1, axis=1)).as_matrix()
    spread = scale * (axes @ turns) * np.asarray(gaussians.scales, np.float64)[:, None, :]
    return means, spread @ spread.swapaxes(1, 2)
