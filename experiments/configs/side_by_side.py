"""The quickstart for each of the three models, at a constant rate: any step can be compared.

    python train.py --config=experiments/configs/side_by_side.py:LVSMDecoderOnly \
        --workdir=runs/decoder_only

The name after the colon is an architecture. `python -m experiments.side_by_side` trains all three
and draws their curves; experiments/reports/side_by_side.md says what came of it.
"""

import ml_collections

from configs import quickstart


def get_config(architecture: str = "EfficientLVSM") -> ml_collections.ConfigDict:
    """The quickstart's sizes and data; often evaluated."""
    config = quickstart.get_config(architecture)
    if architecture == "EfficientLVSM":
        config.model.copy_head = False
    config.optimizer.schedule = "constant"
    config.run.update(eval_every=50, eval_scenes=64, image_every=0)
    return config
