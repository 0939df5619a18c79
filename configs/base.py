"""Every field with its default; the other configs start from here.

Sections are the fields of dataclasses, whose docstrings say what each does:

- `run`: `lvsm_jax.config.RunConfig`
- `model`: `lvsm_jax.efficient_lvsm.EfficientLVSMConfig`
- `data`: `input_pipeline.config.DataConfig`
- `optimizer`: `lvsm_jax.optimizer.OptimizerConfig`
- `loss`: `lvsm_jax.losses.LossConfig`
- `eval`: `lvsm_jax.config.EvalConfig`
"""

import ml_collections

from input_pipeline.config import DataConfig
from lvsm_jax.config import EvalConfig, RunConfig, default_section
from lvsm_jax.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.losses import LossConfig
from lvsm_jax.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """The published model and recipe; data from `data/re10k`."""
    config = ml_collections.ConfigDict()
    config.run = default_section(RunConfig())
    config.model = default_section(EfficientLVSMConfig())
    config.data = default_section(DataConfig(path="data/re10k"))
    config.data.patch_size = config.model.get_ref("patch_size")
    config.optimizer = default_section(OptimizerConfig())
    config.loss = default_section(LossConfig())
    config.eval = default_section(EvalConfig())
    return config
