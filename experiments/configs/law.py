"""Width against length of training: the `copies` arm of beyond_arms.py in other sizes.

    python train.py --config=experiments/configs/law.py:192x0.25 --workdir=runs/192x0.25

The words after the colon are the width, a multiple of 32, and FLOPs of training as a multiple of
those of that arm, which has width 128. reports/past_paper.md has the law that comes of it.
"""

import ml_collections

from experiments.configs import beyond_arms
from experiments.configs.arms import step_flops


def get_config(size: str = "128x1") -> ml_collections.ConfigDict:
    """32 px, 3 layers, heads of 32 channels."""
    width, share = size.split("x")
    base = beyond_arms.get_config("copies")
    config = base.copy_and_resolve_references()
    config.model.width = int(width)
    steps = float(share) * base.run.num_steps * step_flops(base) / step_flops(config)
    config.run.num_steps = max(10, 10 * round(steps / 10))
    return config
