r"""Efficient-LVSM on objects at 256 px: the first stage of the paper's second table.

    lvsm import-objects ~/objaverse data/objects --layout=zero123 --fov=49.134
    lvsm train --config=configs/object_256.py --workdir=runs/object_256
    lvsm make-index data/gso --by=gso
    lvsm eval --config=configs/object_256.py --checkpoint=runs/object_256/export \
        --config.data.path=data/gso

Cameras stay in the object's own frame, which is centred and lies in [-1, 1]³. Of the 32 renders of
an object 4 are inputs and 8 others targets, drawn at random; steps whose gradient is longer than 5
are skipped. `object_512.py` is the second stage. What the protocol is, and what of it was never
published, is in docs/objects.md.

Loss, rate, steps and batch of this stage were not published: they are those of `re10k_256.py`, as
are hardware and `:gpu`. Nobody has trained it yet.
"""

import ml_collections

from configs import re10k_256


def get_config(device: str = "any") -> ml_collections.ConfigDict:
    """The 256 px stage: 4 inputs and 8 targets of an object."""
    config = re10k_256.get_config(device)
    config.data.update(path="data/objects", camera_normalization="none", sampling="random")
    config.data.update(num_views=12, num_inputs=4, num_targets=8)
    config.optimizer.update(clip_norm=1.0, skip_factor=5.0)
    config.eval.update(num_inputs=4, camera_normalization="none", batch_size=4)
    return config
