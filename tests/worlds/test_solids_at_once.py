"""Rays find the same, however many solids they are compared with at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lvsm_jax.common.errors import UserError
from lvsm_jax.worlds import solids
from lvsm_jax.worlds.config import WorldsConfig

NUMBERS, COUNTS, RAYS = (22, 9, 7), (18, 9, 3), 2000


@pytest.fixture(scope="module")
def found():
    """Distances, what is met, what is blocked and how far solids are, by solids at once."""
    rng = np.random.default_rng(0)
    forms = []
    for number, count in zip(NUMBERS, COUNTS, strict=True):
        turn, center = Rotation.random(number, rng).as_matrix(), rng.uniform(-3, 3, (number, 3))
        half, ratio = rng.uniform(0.1, 0.6, (number, 3)), rng.uniform(0, 1.4, number)
        arrays = map(jnp.float32, (turn, center, half, ratio))
        forms.append(solids.Solids(*arrays, jnp.zeros(number), count))
    rows = [solids.pack(form) for form in forms]
    shell = jnp.array([[-5.0] * 3, [5.0] * 3])
    geometry = solids.Geometry(*rows, jnp.array(COUNTS), shell)
    origins = jnp.float32(rng.uniform(-4.9, 4.9, (3, RAYS)))
    directions = jnp.float32(rng.normal(size=(3, RAYS)))
    limit = jnp.float32(rng.uniform(0.5, 4, RAYS))

    @jax.jit
    def look(geometry):
        met = solids.cast(geometry, origins, directions)
        blocked = solids.is_blocked(geometry, origins, directions, limit)
        return *met, blocked, solids.distance_to_solids(geometry, origins)

    return {
        at_once: jax.device_get(look(dataclasses.replace(geometry, at_once=at_once)))
        for at_once in (1, 8, 128)  # each written out; some a turn; all in one
    }


@pytest.mark.parametrize("at_once", [8, 128])
def test_rays_meet_the_same_solids(found, at_once):
    distance, index, blocked, away = found[at_once]
    expected = found[1]
    # Nothing is left out: all of the solids that are there are met, and no others.
    first = np.cumsum([0, 24, 12])  # padded to a multiple of four
    there = np.concatenate([start + np.arange(n) for start, n in zip(first, COUNTS, strict=True)])
    assert set(there) <= set(index.tolist()) <= {*there, *range(44, 50)}
    same = index == expected[1]
    assert same.mean() > 0.999  # rounding decides at the edges
    np.testing.assert_allclose(distance[same], expected[0][same], rtol=1e-4)
    assert 0.02 < blocked.mean() < 0.98
    assert (blocked == expected[2]).mean() > 0.999
    np.testing.assert_allclose(away, expected[3], atol=1e-5)


def test_turns_divide_the_solids():
    sizes = {most: solids.solids_a_turn(80, most) for most in (1, 4, 7, 8, 32, 79, 80, 500)}
    assert sizes == {1: 4, 4: 4, 7: 4, 8: 8, 32: 20, 79: 40, 80: 80, 500: 80}


def test_no_solids_at_once_is_told():
    with pytest.raises(UserError, match=r"worlds.solids_at_once is 0, expected at least 1"):
        WorldsConfig(solids_at_once=0)
