"""Efficient-LVSM at 256 px past the paper: `re10k_256.py`, and what was worth it in small models.

    lvsm train --config=configs/beyond_256.py --workdir=runs/beyond_256 \
        --config.data.path=data/re10k
    lvsm eval --config=configs/beyond_256.py --checkpoint=runs/beyond_256/export \
        --config.eval.num_inputs=8

What differs, and why (experiments/reports/past_paper.md; nobody has trained it at this size). At 32
px, in equal FLOPs, all of it together is 4 dB above the published recipe with 2 inputs, and 6 dB
with 8, LPIPS less than half:

- `copy_head`: most of it. The model copies what inputs show, and paints what they do not. Where
  depth is known, `loss.points` teaches it where to look: `configs/worlds_256.py` is this model on
  worlds, whose export is a start (`--config.init_from=runs/worlds_256/export`), and
  `--config.data.worlds_share=0.5 --config.loss.points=0.5` has every second step on worlds.
- `input_counts`, 1, 2, 4 or 8 inputs a step, with `camera_encoding="plucker_prope"`, rays in the
  tokens and relative cameras in the attention: quality rises with inputs. `num_views=16` leaves
  views to be targets.
- `halves="decoupled"`: colours and rays of a token in halves of their own, three fifths of the
  weights: 0.2 dB with 2 inputs and 0.4 dB with 8 in equal FLOPs, none in equal steps.
- `frame_turn` and `scale_jitter`: scene frames of any orientation, of a quarter to four times the
  scale. Otherwise a turn of the world costs 4 dB, and twice the scale 0.6; so 0.2 and 0.1. The
  price is 0.2 dB with 2 inputs and 0.5 with 8.
- `head_dim=128`, 6 heads instead of 12, in the same FLOPs: as good, and faster, for heads of 64
  channels fill half of a TPU's matrix unit, and half as many heads have half the softmax.
- `attention_temperature="log_views"`: 0.1 to 0.2 dB with 8 inputs and more (arms.md).

What does not, for want of a gain there: `halves="decoupled_film"`, `residual_scaling`, views of the
encoder that see earlier ones, a second look, the split of a batch into scenes and targets.

Hardware: as for `re10k_256.py`, `:gpu` and `:gpu24` too, with memory for steps of 8 inputs:
`lvsm describe --config=configs/beyond_256.py --views=8 --targets=6`. 121 M parameters.
Cost: 3.8 PFLOP a step in the mean, 1.03 times that of `re10k_256.py`.
"""

import ml_collections

from configs import re10k_256


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 256 px stage."""
    config = re10k_256.get_config(device)
    config.model.update(camera_encoding="plucker_prope", attention_temperature="log_views")
    config.model.update(halves="decoupled", copy_head=True, head_dim=128)
    config.data.update(input_counts=(1, 2, 4, 8), num_views=16)
    config.data.update(frame_turn=180.0, scale_jitter=4.0)
    return config
