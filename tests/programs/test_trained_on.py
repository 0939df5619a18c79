"""The line that says what an export was trained on, and what in a scene is far from it."""

import numpy as np
import pytest

from lvsm_jax.programs.trained_on import differences, trained_on
from lvsm_jax.scenes.photograph import PosedCamera


def about(**data):
    return {"step": 900, "config": {"data": {"path": "data/re10k", "image_height": 256, **data}}}


def cameras(count, width=640, height=360):
    return [PosedCamera(np.eye(4), [500, 500, width / 2, height / 2], width, height)] * count


@pytest.mark.parametrize(
    ("description", "line"),
    [
        (
            about(num_inputs=2),
            "the model was trained on data/re10k: pictures of 256×256 pixels, 2 inputs, 900 steps",
        ),
        (
            about(input_counts=[4, 2], num_inputs=2, square_crop=False),
            "the model was trained on data/re10k: pictures of 256 high pixels, 2 or 4 inputs, "
            "900 steps",
        ),
        (
            about(num_inputs=2, mix=["data/mine"]),
            "the model was trained on data/re10k and data/mine: pictures of 256×256 pixels, "
            "2 inputs, 900 steps",
        ),
        (
            {"source": {"file": "model.pt"}},
            "the model: converted from model.pt, which does not say what it was trained on",
        ),
        ({}, "the model: an export that does not say what it was trained on"),
    ],
)
def test_line(description, line):
    assert trained_on(description) == line


def test_differences():
    description = about(num_inputs=2)
    assert differences(description, cameras(2, 400, 300), (256, 256)) == []
    assert differences({}, cameras(9), (64, 64)) == []
    size, inputs, shown = differences(description, cameras(4), (256, 256 * 3))[:2] + differences(
        description, cameras(2), (256, 256)
    )
    assert size == "pictures of 768×256 pixels, and the model was trained at 256×256"
    assert inputs == "4 inputs, and the model was trained with 2"
    assert shown == "of some photographs only the middle 56% are seen: try --size"
    tall = differences(about(num_inputs=2, square_crop=False), cameras(2), (256, 448))
    assert tall == []
