"""Efficient-LVSM at the published size, at 256 px, on worlds made as it trains: no dataset.

    lvsm train --config=configs/worlds_256.py --workdir=runs/worlds_256
    lvsm eval --config=configs/worlds_256.py --checkpoint=runs/worlds_256/export

Its export is a start for photographs:

    lvsm train --config=configs/beyond_256.py --workdir=runs/beyond_256 \
        --config.data.path=data/re10k --config.init_from=runs/worlds_256/export

Model and views are those of `beyond_256.py`, which gives the reasons. Here the depth of the worlds
teaches the head that copies where to look.
Worlds grow from simple ones over the first tenth of the steps, and each serves eight steps, with
other inputs and targets. `--config.data.worlds_share=0.5 --config.data.path=data/re10k` trains on
worlds and photographs in turn.

Hardware: one GPU, with a batch that fits it (`lvsm describe --config=configs/worlds_256.py
--views=8 --targets=4`), or several, each of which renders its own scenes.
Nobody has trained it yet.
"""

import ml_collections

from configs import base, beyond_256


def get_config() -> ml_collections.ConfigDict:
    """256 px, 12 + 12 layers of width 768, bfloat16; 50 to 128 solids a world."""
    config, beyond = base.get_config(), beyond_256.get_config()
    config.model = beyond.model
    config.loss.points = 0.5
    config.data.update(path="", worlds_share=1.0, image_height=256)
    config.data.update(input_counts=beyond.data.input_counts, num_views=16, num_targets=6)
    config.data.update(frame_turn=beyond.data.frame_turn, scale_jitter=beyond.data.scale_jitter)
    config.worlds.update(boxes=80, ellipsoids=24, cylinders=24, scenes_at_once=8)
    config.worlds.update(rays_at_once=262_144, solids_at_once=128)
    config.worlds.update(baseline=(0.04, 1.0), path_weights=(0.5, 0.2, 0.15, 0.15))
    config.worlds.update(complexity_steps=10_000, steps_per_world=8)
    config.run.update(num_steps=100_000, batch_size=64)
    config.optimizer.update(schedule="constant", clip_norm=5.0, skip_factor=5.0)
    config.eval.update(worlds=256, batch_size=16)
    return config
