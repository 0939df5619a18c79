"""What in a scene is far from what an export was trained on."""

import numpy as np

from lvsm_jax.programs.scene_differences import differences, lacks_scale
from lvsm_jax.scenes.photograph import PosedCamera


def about(**data):
    return {"step": 900, "config": {"data": {"path": "data/re10k", "image_height": 256, **data}}}


def cameras(count, width=640, height=360):
    return [PosedCamera(np.eye(4), [500, 500, width / 2, height / 2], width, height)] * count


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
    [several] = differences(about(input_counts=[1, 2, 4]), cameras(3, 400, 300), (256, 256))
    assert several == "3 inputs, and the model was trained with 1, 2 or 4"


def test_inputs_that_tell_no_length():
    assert "one input tells no length: --scale=X" in lacks_scale(cameras(1), None)[0]
    assert "all inputs stand in one place" in lacks_scale(cameras(3), None)[0]
    assert lacks_scale(cameras(3), 0.5) == []
    aside = np.eye(4)
    aside[0, 3] = 0.01
    assert (
        lacks_scale([*cameras(2), PosedCamera(aside, [500, 500, 320, 180], 640, 360)], None) == []
    )
