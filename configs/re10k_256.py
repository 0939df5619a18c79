"""Efficient-LVSM on RealEstate10K at 256 px, the published recipe (arXiv 2602.06478).

    python train.py --config=configs/re10k_256.py --workdir=runs/re10k_256 \
        --config.data.path=data/re10k
    python eval.py --config=configs/re10k_256.py --checkpoint=runs/re10k_256/export

Hardware: one process with all its devices. The published batch of 512 scenes wants 64 A100s, as
LVSM's; on one, `--config.run.batch_size=8`, or the whole batch with
`--config.run.grad_accumulation=64`. 199 M parameters in float32 with AdamW take 3.2 GB, activations
are bfloat16 with `remat="full"`.
Cost: 3.7 PFLOP a step (`lvsm_jax/flops.py`), 34 A100-days for 100 k steps at 40 % of 312 TFLOP/s.
Expected score, as published with the perceptual and REPA losses beside MSE: PSNR 28.93, SSIM 0.895,
LPIPS 0.102 with 2 inputs. This config trains with MSE alone, which nobody has published.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The 256 px stage."""
    config = base.get_config()
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.num_workers = 8
    config.optimizer.schedule = "constant"
    config.optimizer.clip_norm = 5.0
    config.optimizer.skip_factor = 5.0
    return config
