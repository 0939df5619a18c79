"""Cameras of photographs that have none, by pycolmap in a process of its own.

`find_poses` turns a folder of photographs, or a video, into a scene that `read_scene` reads. What
is doubtful is refused: a small reprojection error proves nothing.
"""

from lvsm_jax.poses.find import PosesFound, find_poses, output_of
from lvsm_jax.poses.process import PosesRefused, Progress

__all__ = [
    "PosesFound",
    "PosesRefused",
    "Progress",
    "find_poses",
    "output_of",
]
