"""Poses that are found for photographs, beside the known ones of a scene.

    python -m benchmarks.poses ~/fountain-P11 --first=3 --count=4
    python -m benchmarks.poses ~/hololens_office --every=4 --keep=poses

Of the scene's photographs `--count` are taken, every `--every`-th from `--first` on, without their
cameras. Of the cameras found: rotation in degrees, position in shares of the largest distance
between two cameras, after the best similarity, and focal length. CPU seconds are those of all
threads of COLMAP's process. With --keep the scene that was found stays there.
"""

import argparse
import pathlib
import resource
import shutil
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from benchmarks.common import module_parser
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.table import format_table
from lvsm_jax.poses import PosesRefused, find_poses
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import read_scene


class PoseErrors(NamedTuple):
    """Of each camera."""

    rotation: Float64[np.ndarray, " n"]  # degrees
    position: Float64[np.ndarray, " n"]  # shares of the largest distance between two cameras


def pose_errors(found: Mapping[str, PosedCamera], true: Mapping[str, PosedCamera]) -> PoseErrors:
    """How far cameras are from known ones, after the best similarity between their worlds.

    Least squares: rotations by the sum of all, positions by a similarity (Umeyama, 1991).
    """
    a = np.stack([camera.c2w for camera in found.values()])
    b = np.stack([true[name].c2w for name in found])
    turn = _nearest_rotation(np.einsum("nij,nkj->ik", b[:, :3, :3], a[:, :3, :3]))
    left = np.einsum("nji,jk,nkl->nil", b[:, :3, :3], turn, a[:, :3, :3])
    cosine = (np.trace(left, axis1=1, axis2=2) - 1) / 2
    rotation = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    x, y = (m[:, :3, 3] - m[:, :3, 3].mean(0) for m in (a, b))
    # Two cameras, and those in a line, say too little of the rotation by their positions.
    aligned = x @ (turn if len(x) < 4 else _nearest_rotation(y.T @ x)).T
    aligned *= (aligned * y).sum() / (aligned**2).sum()
    extent = np.linalg.norm(y[:, None] - y[None], axis=-1).max()
    return PoseErrors(rotation, np.linalg.norm(aligned - y, axis=-1) / extent)


def _nearest_rotation(matrix: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and prints a row for each scene."""
    parser = module_parser("benchmarks.poses", __doc__)
    parser.add_argument("scenes", nargs="+", type=path, metavar="SCENE")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--count", type=int, help="(all)")
    parser.add_argument("--keep", type=path, metavar="FOLDER", help="for the scenes that are found")
    given = parser.parse_args(arguments)
    header = [
        "scene",
        "result",
        "rotation °",
        "largest",
        "position %",
        "largest",
        "focal %",
        "CPU s",
    ]
    rows = [_measure(pathlib.Path(scene), given) for scene in given.scenes]
    print(format_table(header, rows, text=2))


def _measure(folder: pathlib.Path, given: argparse.Namespace) -> list[str | None]:
    photographs = read_scene(folder).photographs[given.first :: given.every][: given.count]
    true = {f"{one.source.stem}.jpg": one.camera for one in photographs}
    before = _cpu_seconds()
    with tempfile.TemporaryDirectory() as place:
        source = pathlib.Path(place) / folder.name
        source.mkdir()
        for photograph in photographs:
            shutil.copy(photograph.source, source)
        output = pathlib.Path(given.keep) / folder.name if given.keep else None
        try:
            found = find_poses(source, output)
        except PosesRefused as refused:
            seconds = f"{_cpu_seconds() - before:.0f}"
            return [folder.name, f"refused: {refused}"[:60], *[None] * 5, seconds]
        seconds = f"{_cpu_seconds() - before:.0f}"
        cameras = {one.source.name: one.camera for one in read_scene(found.folder).photographs}
    rotation, position = pose_errors(cameras, true)
    focal = np.median([c.fxfycxcy[0] / true[name].fxfycxcy[0] - 1 for name, c in cameras.items()])
    return [
        folder.name,
        f"{len(cameras)} of {len(photographs)}",
        *(f"{value:.2f}" for value in (np.median(rotation), rotation.max())),
        *(f"{100 * value:.3f}" for value in (np.median(position), position.max())),
        f"{100 * focal:+.1f}",
        seconds,
    ]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
