"""LVSM decoder-only on RealEstate10K at 256 px, the published recipe (arXiv 2410.17242).

    lvsm train --config=configs/lvsm_decoder_only_256.py --workdir=runs/lvsm_decoder_only \
        --config.data.path=data/re10k
    lvsm eval --config=configs/lvsm_decoder_only_256.py --checkpoint=runs/lvsm_decoder_only/export

Losses and hardware: as for `re10k_256.py`; the published batch of 512 scenes was on 64 A100s.
Cost: 15.6 PFLOP a step (`cost/flops.py`), 145 A100-days for 100 k steps at 40 % of 312 TFLOP/s.
Expected score, as published: PSNR 29.67, SSIM 0.906, LPIPS 0.098 with 2 inputs.
"""

import ml_collections

from configs import base


def get_config(architecture: str = "LVSMDecoderOnly") -> ml_collections.ConfigDict:
    """The 256 px stage; rates and decays are the defaults."""
    config = base.get_config(architecture)
    # All targets together: their gradients are added, and weights gathered, once a step.
    config.model.update(dtype="bfloat16", residual_dtype="float32", remat="full")
    config.model.targets_at_once = 0
    config.data.num_workers = 8
    config.optimizer.update(skip_factor=5.0, skip_after=0, schedule_counts_skipped=True)
    config.loss.perceptual = 0.5
    return config
