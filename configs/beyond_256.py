"""Efficient-LVSM at 256 px that profits from more views: the recipe of `re10k_256.py`, and past it.

    python train.py --config=configs/beyond_256.py --workdir=runs/beyond_256 \
        --config.data.path=data/re10k
    python eval.py --config=configs/beyond_256.py --checkpoint=runs/beyond_256/export \
        --config.eval.num_inputs=8

What differs, and why. Numbers are from docs/experiments.md, small models on synthetic rooms: no
published result says what they are at this size.

- `camera_encoding="plucker_prope"`: rays in the tokens and relative cameras in the attention.
- `input_counts`: 1, 2, 4 or 8 inputs a step; `num_views=16` leaves views to be targets.
- `attention_temperature="log_views"`: attention does not flatten as inputs are added.
- `smallest_crop`, `scale_jitter`, `frame_turn`: cameras of users are of other focal lengths, their
  principal points are off the middle, and worlds are neither level nor of one scale.

Hardware: as for `re10k_256.py`; memory is to be planned for the steps of 8 inputs, see
`python -m lvsm_jax.describe --config=configs/beyond_256.py --views=8 --targets=6`.
"""

import ml_collections

from configs import re10k_256


def get_config() -> ml_collections.ConfigDict:
    """The 256 px stage."""
    config = re10k_256.get_config()
    config.model.camera_encoding = "plucker_prope"
    config.model.attention_temperature = "log_views"
    config.data.input_counts = (1, 2, 4, 8)
    config.data.num_views = 16
    config.data.smallest_crop = 0.7
    config.data.scale_jitter = 1.5
    config.data.frame_turn = 30.0
    return config
