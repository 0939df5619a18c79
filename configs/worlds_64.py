"""A small Efficient-LVSM on worlds made as it trains: no download, no dataset, two CPU cores.

    lvsm train --config=configs/worlds_64.py --workdir=runs/worlds_64
    lvsm eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export

`make demo` runs the two. Scores are of held-out worlds; the same model on a dataset:

    lvsm eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export \
        --config.eval.worlds=0 --config.data.path=data/re10k

Each step has 1 to 8 inputs and 4 targets that are none of them, with rays in the tokens and
relative cameras in the attention. Worlds are rendered on the cores that train: each serves four
steps, with other inputs and targets. docs/worlds.md says what they are made of.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """64 px, width 128, float32; 3 layers and 1.5 M parameters."""
    config = base.get_config()
    config.model.update(width=128, head_dim=32, num_layers=3, remat="dots")
    config.model.camera_encoding = "plucker_prope"
    config.data.update(path="", worlds_share=1.0, image_height=64)
    config.data.update(num_views=12, input_counts=(1, 2, 4, 8), num_targets=4)
    config.worlds.update(boxes=20, ellipsoids=6, cylinders=6, steps_per_world=4)
    config.run.update(num_steps=800, batch_size=16, log_every=25, checkpoint_every=200)
    config.run.update(image_every=200, eval_every=400, eval_scenes=32)
    config.optimizer.update(learning_rate=1.5e-3, weight_decay=0.01)
    config.optimizer.update(warmup_steps=100, skip_after=100)
    config.eval.update(worlds=64, batch_size=16)
    return config
