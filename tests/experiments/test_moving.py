"""The comparison on worlds that move: PSNR of the pixels that do, and of the others."""

import dataclasses

import numpy as np
import pytest

from benchmarks.common import random_batch
from experiments.moving import score


def test_pixels_that_move_are_scored_apart():
    batch = random_batch(3, views=2, targets=2, size=8, timed=True)
    moving = np.zeros((3, 2, 8, 8), bool)
    moving[..., :2] = True
    targets = dataclasses.replace(batch.targets, moving=moving)
    batch = dataclasses.replace(batch, targets=targets, valid=np.array([True, True, False]))
    truth = targets.images / np.float32(255)
    off = np.where(moving, 0.1, 0.01)[..., None]
    render = np.where(truth > 0.5, truth - off, truth + off)
    render[2] = 0  # only fills up
    found = score([(render, batch)] * 2)
    assert found["moving"] == pytest.approx(20, abs=1e-3)
    assert found["still"] == pytest.approx(40, abs=1e-2)
    assert found["all"] == pytest.approx(-10 * np.log10(0.25 * 0.01 + 0.75 * 0.0001), abs=1e-3)
    assert found["share"] == 0.25
