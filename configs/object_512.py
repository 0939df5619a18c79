r"""Efficient-LVSM on objects at 512 px: the second stage, as GS-LRM and LVSM publish it.

It starts from what `object_256.py` left in `runs/object_256`; `--config.init_from` names another
export, `--config.init_from=` none.

    lvsm train --config=configs/object_512.py --workdir=runs/object_512
    lvsm eval --config=configs/object_512.py --checkpoint=runs/object_512/export \
        --config.data.path=data/gso

Published: 10 k steps, rate 4e-5, batch 128. Nobody has trained it yet.
Scores as published, with views of which no list is public (docs/objects.md): PSNR 32.92 on Google
Scanned Objects and 32.65 on ABO.
"""

import ml_collections

from configs import object_256


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 512 px stage."""
    config = object_256.get_config(device)
    config.init_from = "runs/object_256/export"
    config.data.image_height = 512
    config.run.update(batch_size=128, num_steps=10_000)
    config.optimizer.update(learning_rate=4e-5, warmup_steps=1000)
    config.eval.batch_size = 1
    return config
