"""A smaller Efficient-LVSM at 128 px on worlds made as it trains: for one GPU and some hours.

    lvsm train --config=configs/worlds_128.py --workdir=runs/worlds_128
    lvsm eval --config=configs/worlds_128.py --checkpoint=runs/worlds_128/export

As `worlds_256.py` but for the sizes of pictures, model, worlds and run.

Hardware: one GPU; `lvsm describe --config=configs/worlds_128.py --views=8 --targets=4` says how
many scenes fit it. Nobody has trained it yet.
"""

import ml_collections

from configs import worlds_256


def get_config() -> ml_collections.ConfigDict:
    """128 px, 6 + 6 layers of width 384, bfloat16; up to 80 solids a world."""
    config = worlds_256.get_config()
    config.model.update(width=384, head_dim=64, num_layers=6, remat="dots")
    config.data.update(image_height=128, num_views=12, num_targets=4)
    config.worlds.update(boxes=48, ellipsoids=16, cylinders=16)
    config.worlds.update(complexity_steps=2000, steps_per_world=8)
    config.run.update(num_steps=20_000, batch_size=32)
    config.optimizer.update(schedule="cosine", learning_rate=6e-4, warmup_steps=500)
    config.eval.worlds = 128
    return config
