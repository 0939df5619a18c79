"""LVSM encoder-decoder on RealEstate10K at 256 px, the published recipe (arXiv 2410.17242).

    lvsm train --config=configs/lvsm_encoder_decoder_256.py --workdir=runs/lvsm_enc_dec \
        --config.data.path=data/re10k
    lvsm eval --config=configs/lvsm_encoder_decoder_256.py --checkpoint=runs/lvsm_enc_dec/export

Losses and hardware: as for `lvsm_decoder_only_256.py`.
Cost: 14.2 PFLOP a step, 131 A100-days for 100 k steps at 40 % of 312 TFLOP/s.
Expected score, as published: PSNR 28.60, SSIM 0.893, LPIPS 0.114 with 2 inputs.
"""

import ml_collections

from configs import lvsm_decoder_only_256


def get_config() -> ml_collections.ConfigDict:
    """The 256 px stage, as of the other LVSM."""
    return lvsm_decoder_only_256.get_config("LVSMEncoderDecoder")
