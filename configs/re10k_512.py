"""Efficient-LVSM on RealEstate10K at 512 px, the published second stage (arXiv 2602.06478).

It starts from what `re10k_256.py` left in `runs/re10k_256`; `--config.init_from` names another
export, `--config.init_from=` none.

    lvsm train --config=configs/re10k_512.py --workdir=runs/re10k_512 --config.data.path=data/re10k
    lvsm eval --config=configs/re10k_512.py --checkpoint=runs/re10k_512/export

Hardware: as for 256 px; 4096 tokens a view instead of 1024, batch 128, 20 k steps.
Cost: 7.3 PFLOP a step, 13 A100-days for 20 k steps at 40 % of 312 TFLOP/s, and what the perceptual
loss takes.
Expected score, as published with REPA: PSNR 29.86, SSIM 0.905, LPIPS 0.147 with 2 inputs.
"""

import ml_collections

from configs import re10k_256


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 512 px stage."""
    config = re10k_256.get_config(device)
    config.init_from = "runs/re10k_256/export"
    config.data.image_height = 512
    config.run.update(batch_size=128, num_steps=20_000)
    config.optimizer.update(learning_rate=1e-4, warmup_steps=1000)
    config.eval.batch_size = 2
    return config
