"""The models by the names that configs and exports use."""

import dataclasses
from typing import Any

import jax
import ml_collections
from flax import nnx

from lvsm_jax.common.checks import check_choice
from lvsm_jax.common.config import section
from lvsm_jax.common.errors import UserError
from lvsm_jax.models import efficient_lvsm, gs_lrm, lvsm
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel

_MODELS: dict[type[ModelConfig], type[ViewSynthesisModel]] = {
    efficient_lvsm.EfficientLVSMConfig: efficient_lvsm.EfficientLVSM,
    lvsm.LVSMDecoderOnlyConfig: lvsm.LVSMDecoderOnly,
    lvsm.LVSMEncoderDecoderConfig: lvsm.LVSMEncoderDecoder,
    gs_lrm.GSLRMConfig: gs_lrm.GSLRM,
}

CONFIGS = {model.__name__: config for config, model in _MODELS.items()}


def config_class(architecture: Any) -> type[ModelConfig]:
    """The configuration of an architecture; raises UserError for a name that is none."""
    check_choice("architecture", architecture, CONFIGS)
    return CONFIGS[architecture]


def read_config(config: ml_collections.ConfigDict) -> ModelConfig:
    """The model of an experiment's config: its `architecture` and its section `model`.

    Fields that the section lacks take their defaults. Raises UserError naming the field that is
    wrong.
    """
    cls = config_class(config.get("architecture"))
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(config.get("model", {})) - known):
        raise UserError(
            f"config.model has {unknown}, but {config.architecture} only {sorted(known)}: an "
            "architecture is chosen by a config file made for it, as configs/base.py:NAME is"
        )
    return section(config, "model", cls)


def architecture_of(config: ModelConfig) -> str:
    """The name of a configuration's architecture."""
    return _MODELS[type(config)].__name__


def new_model(config: ModelConfig, rngs: nnx.Rngs) -> ViewSynthesisModel:
    """A model with random weights."""
    return _MODELS[type(config)](config, rngs=rngs)


def abstract_model(config: ModelConfig) -> ViewSynthesisModel:
    """A model with shapes and types in place of weights; costs nothing."""
    return jax.eval_shape(lambda key: new_model(config, nnx.Rngs(key)), jax.random.key(0))
