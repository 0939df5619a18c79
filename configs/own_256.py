r"""A model goes on to learn from scenes of your own: from an export, on one GPU.

    lvsm import-scenes ~/captures data/own
    lvsm make-index data/own
    lvsm train --config=configs/own_256.py --workdir=runs/own
    lvsm eval --config=configs/own_256.py --checkpoint=runs/own/export \
        --beside=runs/worlds_256/export

It starts from `runs/worlds_256/export`, or another, whose model and size of pictures it takes:

    lvsm train --config=configs/own_256.py:runs/re10k_256/export --workdir=runs/own
    lvsm train --config=configs/own_256.py:shipped --workdir=runs/own    # 64 px, on two CPU cores

Each step has 2 to 4 inputs, and 4 targets that are none of them. Steps are few, and the learning
rate is a quarter of the published: with a few scenes a model soon knows them by heart. The more
others it sees beside, the longer it can learn: `--config.data.mix=data/re10k`, or
`--config.data.worlds_share=0.5`. docs/data.md has a short run on a few real scenes, which did not
help: compare before and after on scenes that are held out.

Hardware: one GPU of 24 GB or more for the published size; `lvsm describe` counts it.
"""

import os

import ml_collections

from configs import base, worlds_256
from lvsm_jax.weights.exports import describe
from lvsm_jax.weights.shipped import SHIPPED, training_data

_EXPORT = "runs/worlds_256/export"


def get_config(export: str = "") -> ml_collections.ConfigDict:
    """The model of an export (`shipped`: that in the package), at the size it was trained at."""
    config = _of_export(os.fspath(SHIPPED) if export == "shipped" else export)
    config.data.update(path="data/own", worlds_share=0.0)
    config.data.update(num_views=8, input_counts=(2, 3, 4), num_targets=4, smallest_crop=0.7)
    config.loss.points = 0.0  # no depth is known of photographs
    config.run.update(num_steps=2000, batch_size=8, checkpoint_every=500)
    config.run.update(image_every=500, eval_every=500, eval_scenes=16)
    config.optimizer.update(learning_rate=1e-4, schedule="cosine", warmup_steps=100, skip_after=100)
    config.eval.update(worlds=0, num_inputs=4)
    return config


def _of_export(export: str) -> ml_collections.ConfigDict:
    """The fields of the model, and the height of its pictures."""
    if not export:
        config = worlds_256.get_config()
        config.init_from = _EXPORT
        return config
    about = describe(export)
    config = base.get_config(about["architecture"])
    config.model.update(about["model"])
    config.data.image_height = training_data(about).get("image_height", 256)
    config.init_from = export
    return config
