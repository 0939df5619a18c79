"""What a head that copies is worth in equal time, on worlds and with relative cameras.

    python train.py --config=experiments/configs/copy_head.py:guided --workdir=runs/guided

The name after the colon is an arm:

- `regressed`: no head that copies, for twice as many steps, which take about as long;
- `copied`: the head, taught by colours alone;
- `guided`: the head, and the depth of the worlds teaches it where to look (`loss.points`).

reports/copy_head.md has the scores.
"""

import ml_collections

from configs import worlds_64

_ARMS = {
    "regressed": {"copy_head": False, "points": 0.0, "longer": 2},
    "copied": {"copy_head": True, "points": 0.0, "longer": 1},
    "guided": {"copy_head": True, "points": 0.5, "longer": 1},
}


def get_config(arm: str = "guided") -> ml_collections.ConfigDict:
    """32 px, 300 steps of a model that copies; one core."""
    if arm not in _ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {tuple(_ARMS)}")
    chosen = _ARMS[arm]
    config = worlds_64.get_config()
    config.model.copy_head = chosen["copy_head"]
    config.worlds.update(baseline=(0.35, 1.3), path_weights=(0.4, 0.25, 0.2, 0.15))
    config.worlds.kind_weights = (0.45, 0.3, 0.25)
    config.loss.points = chosen["points"]
    config.data.update(image_height=32, scale_jitter=1.0)
    config.run.update(num_steps=300 * chosen["longer"], cpu_devices=1)
    config.run.update(eval_every=0, image_every=0, layers_every=0)
    config.eval.world_views = 20
    return config
