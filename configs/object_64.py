"""A small Efficient-LVSM on objects, in their own frame: learns in minutes on two CPU cores.

    lvsm synthetic data/world_objects --rig=gso --train-scenes=128 --test-scenes=16
    lvsm train --config=configs/object_64.py --workdir=runs/object_64
    lvsm eval --config=configs/object_64.py --checkpoint=runs/object_64/export

As `object_256.py` in all that is about data, with the small model of `quickstart.py`. The data is
objects of worlds, which a program makes, in the rig of the renders of Google Scanned Objects; the
index beside it has the inputs and targets of docs/objects.md.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """64 px, width 128, float32; 4 inputs and 4 targets of an object."""
    config = quickstart.get_config()
    config.data.update(path="data/world_objects", camera_normalization="none", sampling="random")
    config.data.update(num_views=8, num_inputs=4, num_targets=4)
    config.run.update(num_steps=400, batch_size=8, checkpoint_every=100)
    config.optimizer.warmup_steps = 50
    config.eval.update(num_inputs=4, camera_normalization="none", batch_size=8)
    return config
