"""Efficient-LVSM on RealEstate10K at 256 px, the published recipe without REPA (arXiv 2602.06478).

MSE and half of the perceptual loss, which needs VGG-19's weights (docs/training.md says where
from); `--config.loss.perceptual=0` goes without. `re10k_256_repa.py` has REPA besides, as the
published model had; `re10k_512.py` is the second stage.

    lvsm train --config=configs/re10k_256.py --workdir=runs/re10k_256 --config.data.path=data/re10k
    lvsm eval --config=configs/re10k_256.py --checkpoint=runs/re10k_256/export

Hardware: one process with all its devices. The published batch of 512 scenes wants 64 A100s; on
one, `--config.run.batch_size=8`, or the whole batch with `--config.run.grad_accumulation=64`.
199 M parameters in float32 with AdamW take 3.2 GB. 8 scenes take 21 GB in all
(docs/developers/gpus.md), and 8 GB with `--config.model.remat=full --config.model.unroll=False`,
which TPUs want too: their compiler takes long for unrolled layers.
Cost: 3.7 PFLOP a step (`cost/flops.py`), 34 A100-days for 100 k steps at 40 % of 312 TFLOP/s,
and what the perceptual loss takes (docs/training.md).
Expected score, as published with REPA: PSNR 28.93, SSIM 0.895, LPIPS 0.102 with 2 inputs.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The 256 px stage."""
    config = base.get_config()
    config.model.update(dtype="bfloat16", remat="dots", unroll=True)
    config.data.num_workers = 8
    config.optimizer.update(schedule="constant", clip_norm=5.0)
    config.optimizer.update(skip_factor=10.0, skip_after=0, schedule_counts_skipped=True)
    config.loss.perceptual = 0.5
    return config
