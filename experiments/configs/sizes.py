"""Patch size, width and depth of a small model that copies, at equal FLOPs of training.

    python train.py --config=experiments/configs/sizes.py:wide --workdir=runs/wide

The name after the colon is an arm; all train for as many FLOPs as `shipped` in 300 steps:

- `shipped`: patches of 8 pixels, width 128, 4 layers, as the weights that come with the package;
- `wide`: width 192, 2 layers;
- `deep`: width 96, 7 layers;
- `fine`: patches of 4 pixels, width 64, 4 layers;
- `coarse`: patches of 16 pixels, width 256, 4 layers.

reports/sizes.md has the scores.
"""

import ml_collections

from configs import worlds_64
from experiments.configs.arms import steps_of_like_cost

_ARMS = {
    "shipped": {"patch_size": 8, "width": 128, "num_layers": 4},
    "wide": {"patch_size": 8, "width": 192, "num_layers": 2},
    "deep": {"patch_size": 8, "width": 96, "num_layers": 7},
    "fine": {"patch_size": 4, "width": 64, "num_layers": 4},
    "coarse": {"patch_size": 16, "width": 256, "num_layers": 4},
}


def get_config(arm: str = "shipped") -> ml_collections.ConfigDict:
    """64 px, 8 worlds a step of 2 inputs and 4 targets; one core."""
    if arm not in _ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {tuple(_ARMS)}")
    shipped, config = _config("shipped"), _config(arm)
    config.run.num_steps = steps_of_like_cost(config, shipped)
    return config


def _config(arm: str) -> ml_collections.ConfigDict:
    config = worlds_64.get_config()
    config.model.update(_ARMS[arm])
    config.data.input_counts = (2,)
    config.run.update(num_steps=300, batch_size=8, cpu_devices=1)
    config.run.update(eval_every=0, image_every=0, layers_every=0)
    config.eval.update(worlds=48, batch_size=8)
    return config
