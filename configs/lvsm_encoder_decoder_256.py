"""LVSM encoder-decoder on RealEstate10K at 256 px, the published recipe (arXiv 2410.17242).

    python train.py --config=configs/lvsm_encoder_decoder_256.py --workdir=runs/lvsm_enc_dec \
        --config.data.path=data/re10k
    python eval.py --config=configs/lvsm_encoder_decoder_256.py \
        --checkpoint=runs/lvsm_enc_dec/export

Hardware: as for `lvsm_decoder_only_256.py`.
Cost: 14.2 PFLOP a step, 131 A100-days for 100 k steps at 40 % of 312 TFLOP/s.
Expected score, as published with a perceptual loss beside MSE: PSNR 28.60, SSIM 0.893, LPIPS 0.114
with 2 inputs. This config trains with MSE alone, which nobody has published.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The 256 px stage; the optimizer's defaults are LVSM's."""
    config = base.get_config("LVSMEncoderDecoder")
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    # All targets together: their gradients are added, and weights gathered, once a step.
    config.model.targets_at_once = 0
    config.data.num_workers = 8
    return config
