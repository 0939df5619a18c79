"""Which maps are believed, on maps that are made up."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lvsm_jax.poses import gates, judge
from lvsm_jax.poses.gates import Lens, Map

NAMES = [f"{i}.jpg" for i in range(10)]
LENS = Lens(800.0, (500.0, 300.0), 0.02, (1000, 600))
NO_EXIF = dict.fromkeys(NAMES)


def some_map(method="incremental", *, names=NAMES, points=300, lens=LENS, noise=0.0, seed=0):
    """Cameras around the origin, in a world of another frame and unit for each seed."""
    rng = np.random.default_rng(seed)
    world = np.eye(4)
    world[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    world[:3, 3] = rng.normal(size=3)
    w2c, unit = {}, rng.uniform(0.5, 3)
    for i, name in enumerate(NAMES):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("yx", [0.3 * i, 0.05 * i]).as_matrix()
        pose[:3, 3] = [np.sin(0.3 * i), 0.1 * i, np.cos(0.3 * i)]
        pose[:3, 3] += noise * rng.normal(size=3)
        pose = np.linalg.inv(pose) @ world
        pose[:3, 3] *= unit
        w2c[name] = pose
    w2c = {name: w2c[name] for name in names}
    counts = dict.fromkeys(names, points)
    return Map(method, w2c, dict.fromkeys(names, lens), counts, 0.4)


def no_more(best):
    pytest.fail("another seed was asked for")


def test_maps_in_other_worlds_are_the_same():
    agreement = gates.compare(some_map(seed=1), some_map(seed=2))
    assert agreement.agreed == NAMES
    assert agreement.rotation.max() < 1e-3 and agreement.position.max() < 1e-6


def test_photographs_at_which_maps_differ_are_told_from_the_others():
    one, other = some_map(seed=1), some_map(seed=2)
    turned = Rotation.from_euler("y", 150, degrees=True).as_matrix()
    other.w2c["3.jpg"][:3] = turned @ other.w2c["3.jpg"][:3]
    other.w2c["7.jpg"][:3, 3] += 0.5
    assert gates.compare(one, other).agreed == [n for n in NAMES if n not in ("3.jpg", "7.jpg")]


def test_two_ways_that_agree_are_taken():
    maps = [some_map(seed=1), some_map("global", seed=2)]
    best, verdict = judge.choose(maps, NAMES, NO_EXIF, no_more)
    assert best is maps[0] and verdict.joined == NAMES and not verdict.refused
    assert "two ways of mapping agree" in verdict.notes[0]


def test_what_did_not_join_or_differs_is_left_out_with_why():
    one, other = some_map(names=NAMES[:9], seed=1), some_map("global", seed=2)
    other.w2c["4.jpg"][:3, 3] += 1.0
    best, verdict = judge.choose([one, other], NAMES, NO_EXIF, no_more)
    # The global map has more, and the incremental one knows nothing of the last.
    assert best is other and len(verdict.joined) == 8
    assert set(verdict.left_out) == {"4.jpg", "9.jpg"}
    assert "differs" in verdict.left_out["4.jpg"]


@pytest.mark.parametrize(
    ("maps", "told"),
    [
        ([], "none of 10 photographs has enough in common"),
        ([some_map(names=NAMES[:7])], "only 7 of 10 photographs join.*7.jpg, 8.jpg, 9.jpg"),
        ([some_map(points=12)], "only 0 of 10 photographs join"),
        ([some_map(lens=Lens(3000.0, (500.0, 300.0), 0.0, (1000, 600)))], "a field of view of 19°"),
        ([some_map(lens=Lens(300.0, (500.0, 300.0), 0.0, (1000, 600)))], "a field of view of 118°"),
        ([some_map(lens=Lens(800.0, (500.0, 300.0), 0.5, (1000, 600)))], "distorts by k = 0.50"),
        ([some_map(seed=1), some_map("global", seed=2, noise=0.3)], "two ways of mapping agree on"),
    ],
)
def test_what_is_refused_and_why(maps, told):
    best, verdict = judge.choose(maps, NAMES, NO_EXIF, no_more)
    assert best is None and not verdict.joined
    with pytest.raises(ValueError, match=told):
        raise ValueError(verdict.refused)
    assert "photographs" in verdict.refused.split(": ", 1)[1]


def test_a_focal_length_far_from_exif_is_refused():
    told = dict.fromkeys(NAMES, 1200.0)
    best, verdict = judge.choose([some_map()], NAMES, told, no_more)
    assert best is None and "0.67 times that of EXIF" in verdict.refused


def test_one_way_alone_with_few_points_is_refused():
    best, verdict = judge.choose([some_map("global", points=150)], NAMES, NO_EXIF, no_more)
    assert best is None and "global mapping alone found them, and 150 points" in verdict.refused


def test_one_way_alone_needs_two_more_seeds_that_agree():
    maps = [some_map(names=NAMES[:3], seed=1), some_map("global", seed=2)]
    again = [some_map("global", seed=3), some_map("global", seed=4)]
    best, verdict = judge.choose(maps, NAMES, NO_EXIF, lambda _: again)
    assert best is maps[1] and verdict.joined == NAMES
    assert "joined 3: look at the page" in verdict.notes[1]
    again[1] = some_map("global", seed=4, noise=0.3)
    best, verdict = judge.choose(maps, NAMES, NO_EXIF, lambda _: again)
    assert best is None and "two more seeds agree on" in verdict.refused
    assert judge.choose(maps, NAMES, NO_EXIF, lambda _: [])[1].refused
