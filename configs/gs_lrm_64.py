"""A small GS-LRM on worlds made as it trains: Gaussians that one can take away.

    lvsm train --config=configs/gs_lrm_64.py --workdir=runs/gs_lrm_64
    lvsm eval --config=configs/gs_lrm_64.py --checkpoint=runs/gs_lrm_64/export
    lvsm render SCENE out/ --weights=runs/gs_lrm_64/export --ply=out.ply

As `worlds_64.py`, which has Efficient-LVSM on the same worlds. The Gaussians do not start as the
published ones do (docs/models.md): distances are even in 1 / distance and start where worlds are,
scales count pixels, colours are the pixels' own, Gaussians are opaque, and what no input sees is
grey. So it begins with the inputs' pictures, moved, and has depth to learn, which that of the
worlds teaches beside the pictures.
"""

import ml_collections

from configs import base

# Half of what two inputs of a world show is farther than 13 scene units, 1 in 20 pixels nearer than
# 2 and, without the sky, 1 in 20 farther than 100.
GAUSSIANS = {
    "distance_space": "inverse",
    "near": 0.5,
    "far": 100.0,
    "distance_bias": 3.0,
    "scale_unit": "pixel",
    "scale_bias": -0.7,
    "max_scale": 3.0,
    "residual_colors": True,
    "opacity_bias": 2.0,
    "background": 0.5,
}


def get_config() -> ml_collections.ConfigDict:
    """64 px, width 128, 6 layers, float32."""
    config = base.get_config("GSLRM")
    config.model.update(width=128, head_dim=32, num_layers=6, remat="none")
    config.model.update(GAUSSIANS, tile_size=8, pairs_per_gaussian=12.0)
    config.data.update(path="", worlds_share=1.0, image_height=64)
    config.data.update(num_views=8, input_counts=(2, 4), num_targets=2)
    config.data.camera_normalization = config.eval.camera_normalization = "input_views"
    config.worlds.update(boxes=20, ellipsoids=6, cylinders=6, steps_per_world=8, complexity_steps=0)
    config.loss.depth = 0.05
    config.run.update(num_steps=800, batch_size=4, log_every=25)
    config.run.update(checkpoint_every=100, image_every=200, eval_every=200, eval_scenes=32)
    config.optimizer.update(learning_rate=1.5e-3, weight_decay=0.01)
    config.optimizer.update(warmup_steps=50, skip_after=100)
    config.eval.update(worlds=64, batch_size=16)
    return config
