"""Patch size, width and depth at equal FLOPs, on worlds of 64 px.

    python train.py --config=experiments/configs/sizes.py:deep --workdir=runs/deep

The name after the colon is an arm: `shipped`, the shape of the weights in the package, or one that
is `wide`, `deep`, or has patches of 4 (`fine`) or 16 pixels (`coarse`). Each trains for as many
steps as cost what 240 of `shipped` do, by `lvsm describe`'s FLOPs.

reports/sizes.md has the scores.
"""

import ml_collections

from configs import worlds_64
from experiments.configs.arms import step_flops

ARMS = {
    "shipped": {"patch_size": 8, "width": 128, "num_layers": 4},
    "wide": {"patch_size": 8, "width": 192, "num_layers": 2},
    "deep": {"patch_size": 8, "width": 96, "num_layers": 7},
    "fine": {"patch_size": 4, "width": 64, "num_layers": 2},
    "coarse": {"patch_size": 16, "width": 256, "num_layers": 4},
}
_STEPS = 240  # of `shipped`


def get_config(arm: str = "shipped") -> ml_collections.ConfigDict:
    """The model of an arm, and its number of steps."""
    if arm not in ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {tuple(ARMS)}")
    config = _sized(arm)
    ratio = step_flops(_sized("shipped")) / step_flops(config)
    config.run.num_steps = round(_STEPS * ratio)
    return config


def _sized(arm: str) -> ml_collections.ConfigDict:
    config = worlds_64.get_config("shipped")
    config.model.update(ARMS[arm])
    config.data.patch_size = config.model.patch_size
    config.worlds.complexity_steps = 0
    config.data.input_counts = (2,)  # one program to compile
    config.run.update(eval_every=0, image_every=0, layers_every=0)
    config.eval.update(worlds=48, world_views=20)
    return config
