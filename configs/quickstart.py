"""A small Efficient-LVSM on worlds from files: learns in minutes on two CPU cores.

    lvsm synthetic data/synthetic
    lvsm train --config=configs/quickstart.py --workdir=runs/quickstart
    lvsm eval --config=configs/quickstart.py --checkpoint=runs/quickstart/export

It is the small config that trains from a dataset, with a head that copies; `worlds_64.py`, which
`make demo` runs, makes its worlds as it trains. The other models of like size, without that head:
`--config=configs/quickstart.py:LVSMDecoderOnly`, `:LVSMEncoderDecoder` or `:GSLRM`.
"""

import ml_collections

from configs import base, gs_lrm_64

_LAYERS = {  # a quarter of the published
    "EfficientLVSM": {"num_layers": 3},
    "LVSMDecoderOnly": {"num_layers": 6, "targets_at_once": 0},
    # 1.5 latents for each token of two inputs, as published at 256 px.
    "LVSMEncoderDecoder": {"num_layers": 3, "num_latents": 192, "targets_at_once": 0},
    "GSLRM": {"num_layers": 6, **gs_lrm_64.GAUSSIANS, "tile_size": 8, "pairs_per_gaussian": 12.0},
}


def get_config(architecture: str = "EfficientLVSM") -> ml_collections.ConfigDict:
    """64 px, width 128, float32; 3 layers and 1.5 M parameters of Efficient-LVSM."""
    if architecture not in _LAYERS:
        raise ValueError(f"architecture is {architecture!r}, expected one of {tuple(_LAYERS)}")
    config = base.get_config(architecture)
    config.model.update(width=128, head_dim=32, remat="dots", **_LAYERS[architecture])
    if architecture == "EfficientLVSM":
        config.model.copy_head = True
    config.data.update(path="data/synthetic", image_height=64)
    config.data.update(num_views=6, num_inputs=2, num_targets=4, min_span=8, max_span=11)
    config.run.update(num_steps=800, batch_size=16, log_every=25, checkpoint_every=200)
    config.run.update(image_every=200, eval_every=400, eval_scenes=32)
    config.optimizer.update(learning_rate=1.5e-3, weight_decay=0.01)
    config.optimizer.update(warmup_steps=100, skip_after=100)
    config.eval.batch_size = 16
    return config
