"""`re10k_256.py` with REPA: the published first stage, complete (arXiv 2602.06478).

Tokens after layer 2 of both streams are aligned with block 8 of DINOv3 ViT-B/16, by smooth-L1;
docs/training.md says where the teacher's weights come from.

    lvsm train --config=configs/re10k_256_repa.py --workdir=runs/re10k_256_repa \
        --config.data.path=data/re10k
    lvsm eval --config=configs/re10k_256_repa.py --checkpoint=runs/re10k_256_repa/export

Hardware and cost: as for `re10k_256.py`, and the teacher's pass (docs/training.md).
Expected score, as published: PSNR 28.93, SSIM 0.895, LPIPS 0.102 with 2 inputs.
"""

import ml_collections

from configs import re10k_256


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 256 px stage, with REPA."""
    config = re10k_256.get_config(device)
    config.repa.weight = 0.5
    return config
