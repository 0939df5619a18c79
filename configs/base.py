"""Every field with its default; the other configs start from here.

- `architecture`: a model's name in `models/architectures.py`; `configs/base.py:NAME` sets it;
- `init_from`: an export whose weights to start from, also at another image size; empty for random
  ones. A run that is resumed does not look at it.

Sections are the fields of dataclasses, whose docstrings say what each does:

- `run`, `data`, `eval`: `RunConfig`, `DataConfig`, `EvalConfig` in `lvsm_jax.common.config`
- `processes`, `mesh`: `ProcessesConfig`, `MeshConfig` in `lvsm_jax.parallel`
- `worlds`: `WorldsConfig` in `lvsm_jax.worlds.config`, with `data.worlds_share` or `eval.worlds`
- `model`: `EfficientLVSMConfig` in `lvsm_jax.models.efficient_lvsm`, or the architecture's own
- `optimizer`, `loss`, `repa`: `OptimizerConfig`, `LossConfig`, `RepaConfig` in `lvsm_jax.training`
"""

import ml_collections

from lvsm_jax.common.config import DataConfig, EvalConfig, RunConfig, default_section
from lvsm_jax.models.architectures import config_class
from lvsm_jax.parallel.mesh import MeshConfig
from lvsm_jax.parallel.processes import ProcessesConfig
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.repa import RepaConfig
from lvsm_jax.worlds.config import WorldsConfig


def get_config(architecture: str = "EfficientLVSM") -> ml_collections.ConfigDict:
    """The published model and recipe; data from `data/re10k`."""
    config = ml_collections.ConfigDict({"architecture": architecture, "init_from": ""})
    config.run = default_section(RunConfig())
    config.processes = default_section(ProcessesConfig())
    config.mesh = default_section(MeshConfig())
    config.model = default_section(config_class(architecture)())
    config.data = default_section(DataConfig(path="data/re10k"))
    config.data.patch_size = config.model.get_ref("patch_size")
    config.worlds = default_section(WorldsConfig())
    config.optimizer = default_section(OptimizerConfig())
    config.loss = default_section(LossConfig())
    config.repa = default_section(RepaConfig())
    config.eval = default_section(EvalConfig())
    return config
