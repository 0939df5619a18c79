"""What a time channel is worth in worlds where bodies slide, on 32 px.

    python train.py --config=experiments/configs/time_arms.py:timed --workdir=runs/timed
    python -m experiments.moving      # both, on the same worlds, with scores

Half of the bodies move, and each view is of a time of its own. The name after the colon is an arm:

- `untimed`: rays and relative cameras, 1 to 8 inputs: nothing tells the model when a view was seen;
- `timed`: the same with `model.time_channel`.

Both take as many steps: the channel adds a hundredth to the FLOPs. reports/time.md has scores.
"""

import ml_collections

from experiments.configs import beyond_arms

_ARMS = {
    "untimed": {"time_channel": False},
    "timed": {"time_channel": True},
}


def get_config(arm: str = "timed") -> ml_collections.ConfigDict:
    """Width 128, 3 layers, patches of 8, float32; 400 steps of 8 scenes."""
    if arm not in _ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {tuple(_ARMS)}")
    chosen = _ARMS[arm]
    config = beyond_arms.get_config("rays_relative")
    config.model.time_channel = chosen["time_channel"]
    config.worlds.moving_share = 0.5
    config.run.num_steps = 400
    return config
