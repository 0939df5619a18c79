"""How far away is what two views of a clip both show, in units of their scene frame?

    pip install 'lvsm_jax[poses]'
    python -m experiments.clip_depths data/re10k --clips=50

A model of Gaussians has to start where scenes are, in the unit of the scene frame, which its inputs
alone define here (`data.camera_normalization="input_views"`). Photographs have no depth: points are
matched by their looks, and lie where the rays of the clip's own cameras meet. Pairs are views 25
frames apart and more, of five evenly spaced in a clip. Points that miss their epipolar lines by
more than two pixels are left out, and those behind a camera are taken to be far away.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from input_pipeline.clip_scene import open_scene
from input_pipeline.storage import SplitReader
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.table import format_table
from lvsm_jax.poses.check import match_photographs
from lvsm_jax.poses.epipolar import PairCheck, check_pair
from lvsm_jax.poses.process import LOG, check_installed
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import Scene
from lvsm_jax.scenes.scene_frame import SceneFrame

_VIEWS, _SPAN = 5, 25  # of a clip, and frames between two views at least
_MISS = 2.0  # pixels
_SHARES = (5, 25, 50, 75, 95)


@program
def main(arguments: list[str]) -> None:
    """Prints percentiles of the distances, over all points and over the medians of pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=path, help="a dataset directory")
    parser.add_argument("--split", default="train", help="(train)")
    parser.add_argument("--clips", type=int, default=20, help="from the first on, at most (20)")
    given = parser.parse_args(arguments)
    check_installed()
    keys = SplitReader(given.dataset, given.split).scenes.key.tolist()[: given.clips]
    pairs = []
    for key in tqdm(keys, "clips"):
        pairs += clip_distances(open_scene(f"{given.dataset}/{given.split}:{key}"))
    if not pairs:
        raise UserError(f"{given.dataset}: no two views {_SPAN} frames apart have points in common")
    rows = {"points": np.concatenate(pairs), "medians of pairs": [np.median(x) for x in pairs]}
    table = [[name, *(f"{x:.1f}" for x in np.percentile(of, _SHARES))] for name, of in rows.items()]
    print(f"{len(keys)} clips, {len(pairs)} pairs of views; distances in scene units")
    print(format_table(("percentile", *map(str, _SHARES)), table))


def clip_distances(clip: Scene) -> Iterator[Float[np.ndarray, " n"]]:
    """Of each pair of views, the distances of the points that both see, from either view."""
    count = len(clip.photographs)
    chosen = sorted(set(np.linspace(0, count - 1, min(_VIEWS, count)).round().astype(int).tolist()))
    frames = {clip.photographs[i].name: i for i in chosen}
    with tempfile.TemporaryDirectory() as place:
        work, views = pathlib.Path(place), [clip.photographs[i] for i in chosen]
        cameras, pairs = match_photographs(views, work, work / LOG)
    for pair in pairs:
        first, second = (frames[name] for name in pair.names)
        if abs(first - second) >= _SPAN:
            views = [cameras[name] for name in pair.names]
            yield pair_distances(check_pair(pair, *views), *views)


def pair_distances(
    check: PairCheck, one: PosedCamera, other: PosedCamera
) -> Float[np.ndarray, " n"]:
    """Distances of a pair's points from both cameras, in units of their scene frame."""
    poses = np.stack([one.c2w, other.c2w])
    fits = check.distances < _MISS
    away = np.linalg.norm(check.points[fits] - poses[:, None, :3, 3], axis=-1)
    return np.where(check.ahead[fits], away * SceneFrame.fit(poses).scale, np.inf).ravel()


if __name__ == "__main__":
    main()
