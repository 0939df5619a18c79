"""Efficient-LVSM on RealEstate10K at 256 px, the published recipe without REPA (arXiv 2602.06478).

MSE and half of the perceptual loss, which needs VGG-19's weights (docs/training.md says where
from); `--config.loss.perceptual=0` goes without. `re10k_256_repa.py` has REPA besides, as the
published model had; `re10k_512.py` is the second stage.

    lvsm train --config=configs/re10k_256.py --workdir=runs/re10k_256 --config.data.path=data/re10k
    lvsm eval --config=configs/re10k_256.py --checkpoint=runs/re10k_256/export

Hardware: one process with all its devices. The published batch of 512 scenes wants 64 A100s; on
one, `--config.run.batch_size=8`, or the whole batch with `--config.run.grad_accumulation=64`.
199 M parameters in float32 with AdamW take 3.2 GB, and 8 scenes 8 GB in all, which fits a v5e.
GPUs are faster with `configs/re10k_256.py:gpu`, which recomputes nothing and unrolls the layers:
30 GB for 8 scenes; those of 24 GB with `:gpu24`, which recomputes norms and GELUs
(docs/developers/gpus.md).
Cost: 3.7 PFLOP a step (`cost/flops.py`), 34 A100-days for 100 k steps at 40 % of 312 TFLOP/s,
and what the perceptual loss takes (docs/training.md).
Expected score, as published with REPA: PSNR 28.93, SSIM 0.895, LPIPS 0.102 with 2 inputs.
"""

import ml_collections

from configs import base

# What the backward pass recomputes, and whether layers are unrolled: that fits any device, or that
# is fast on GPUs, of 24 GB or more. The compilers of TPUs take long for unrolled layers.
_DEVICES = {"any": ("full", False), "gpu24": ("dots", True), "gpu": ("none", True)}


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 256 px stage."""
    if device not in _DEVICES:
        raise ValueError(f"device is {device!r}, expected one of {tuple(_DEVICES)}")
    config = base.get_config()
    remat, unroll = _DEVICES[device]
    config.model.update(dtype="bfloat16", remat=remat, unroll=unroll)
    config.data.num_workers = 8
    config.optimizer.update(schedule="constant", clip_norm=5.0)
    config.optimizer.update(skip_factor=10.0, skip_after=0, schedule_counts_skipped=True)
    config.loss.perceptual = 0.5
    return config
