"""Camera paths by name, made from the cameras of the inputs, or read from a file."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes import camera_json, trajectories
from lvsm_jax.scenes.photograph import PosedCamera

# Each name's function, and the options that it takes beside the number of frames.
PATHS = {
    "interpolate": (trajectories.interpolate, ("closed",)),
    "orbit": (trajectories.orbit, ("degrees", "distance")),
    "spiral": (trajectories.spiral, ("turns", "radius", "distance")),
    "dolly": (trajectories.dolly, ("travel",)),
}
FRAMES = 120


def make_path(
    kind: str,
    cameras: Sequence[PosedCamera],
    frames: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[PosedCamera]:
    """The cameras to render on a path made from `cameras`, those of the inputs.

    Args:
        kind: a name of `PATHS`, or a file of cameras.
        cameras: of the inputs.
        frames: cameras of the path (120); a file has as many as it has.
        options: of the function of that name. UserError for one that this path does not have.
    """
    function, allowed = PATHS.get(kind, (None, ()))
    file = os.path.expanduser(kind)
    if function is None and not os.path.isfile(file):
        raise UserError(f"--path={kind}: no such file, nor one of {', '.join(PATHS)}")
    given = dict(options or {}) | ({} if function or frames is None else {"frames": frames})
    if wrong := sorted(given.keys() - set(allowed)):
        raise UserError(f"--{wrong[0]} does not go with --path={kind}")
    if function is None:
        return camera_json.read_camera_path(file)
    return function(cameras, FRAMES if frames is None else frames, **given)
