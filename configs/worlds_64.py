"""A small Efficient-LVSM that copies, on worlds made as it trains: no download, no dataset.

    lvsm train --config=configs/worlds_64.py --workdir=runs/worlds_64
    lvsm eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export

`make demo` runs the two on two CPU cores. The weights that come with the package are those of

    lvsm train --config=configs/worlds_64.py:shipped --workdir=runs/shipped
    lvsm train --config=configs/worlds_64.py:closer --workdir=runs/closer \
        --config.init_from=runs/shipped/export
    lvsm train --config=configs/worlds_64.py:sharper --workdir=runs/sharper \
        --config.init_from=runs/closer/export

a layer deeper and trained for longer, then on paths as short as those of videos, in the end with
LPIPS in the loss. Scores are of held-out worlds; on a dataset:

    lvsm eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export \
        --config.eval.worlds=0 --config.data.path=data/re10k

Each step has 1 to 8 inputs and 4 targets that are none of them, with rays in the tokens, relative
cameras in the attention, and a head that copies, which the worlds' depth teaches where to look.
Worlds are rendered on the cores that train: each serves eight steps, with other inputs and targets.
docs/worlds.md says what they are made of.
"""

import ml_collections

from configs import base

_VARIANTS = {
    "demo": {"num_layers": 3, "num_steps": 300, "learning_rate": 1.5e-3},
    "shipped": {"num_layers": 4, "num_steps": 2800, "learning_rate": 1.2e-3},
    "closer": {"num_layers": 4, "num_steps": 3200, "learning_rate": 1e-3},
    "sharper": {"num_layers": 4, "num_steps": 200, "learning_rate": 2e-4},
}


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """64 px, width 128, float32; 3 layers and 1.6 M parameters, or 4 and 2.1 M."""
    if variant not in _VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {tuple(_VARIANTS)}")
    chosen = _VARIANTS[variant]
    config = base.get_config()
    config.model.update(width=128, head_dim=32, num_layers=chosen["num_layers"], remat="dots")
    config.model.update(camera_encoding="plucker_prope", copy_head=True)
    config.data.update(path="", worlds_share=1.0, image_height=64)
    config.data.update(num_views=12, input_counts=(1, 2, 4, 8), num_targets=4, scale_jitter=1.5)
    config.worlds.update(boxes=20, ellipsoids=6, cylinders=6, steps_per_world=8)
    if variant == "shipped":
        config.worlds.complexity_steps = 800
    else:
        # Paths down to those of a second of video, on which real clips are decided.
        config.worlds.update(baseline=(0.04, 1.0), path_weights=(0.5, 0.2, 0.15, 0.15))
        config.worlds.kind_weights = (0.5, 0.3, 0.2)
    if variant in ("closer", "sharper"):
        config.data.scale_jitter = 1.25
        config.run.seed = 1  # other worlds than before
    config.loss.points = 0.5
    config.run.update(num_steps=chosen["num_steps"], batch_size=16, log_every=25)
    config.run.update(checkpoint_every=100, image_every=200, eval_every=300, eval_scenes=32)
    config.optimizer.update(learning_rate=chosen["learning_rate"], weight_decay=0.01)
    config.optimizer.update(warmup_steps=100, skip_after=100)
    config.eval.update(worlds=64, batch_size=16)
    if variant == "sharper":
        config.loss.lpips = 0.05  # then as large as the squared error
        config.run.update(seed=3, batch_size=8, checkpoint_every=25, eval_every=0)
        config.optimizer.warmup_steps = 20
    return config
