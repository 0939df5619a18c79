"""`re10k_512.py` with REPA: the published second stage, complete (arXiv 2602.06478).

It starts from what `re10k_256_repa.py` left in `runs/re10k_256_repa`, and needs the same teacher.

    lvsm train --config=configs/re10k_512_repa.py --workdir=runs/re10k_512_repa \
        --config.data.path=data/re10k
    lvsm eval --config=configs/re10k_512_repa.py --checkpoint=runs/re10k_512_repa/export

Hardware and cost: as for `re10k_512.py`, and the teacher's pass (docs/training.md).
Expected score, as published: PSNR 29.86, SSIM 0.905, LPIPS 0.147 with 2 inputs.
"""

import ml_collections

from configs import re10k_512


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 512 px stage, with REPA."""
    config = re10k_512.get_config(device)
    config.init_from = "runs/re10k_256_repa/export"
    config.repa.weight = 0.5
    return config
