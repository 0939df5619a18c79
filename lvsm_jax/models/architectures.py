"""The models by the names that configs and exports use."""

import dataclasses
from typing import Any

import jax
import ml_collections
from flax import nnx

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
_OURS = frozenset(CONFIGS)


def register(name: str, config_class: type, model_class: type) -> None:
    """Makes a model of your own known by a name, as those that are here.

    `config_class` is a `ModelConfig`, `model_class` a `ViewSynthesisModel`, which is made as
    `model_class(config, rngs=rngs)`. Then configs can name it as their `architecture`, and it is
    trained, evaluated, saved and loaded as any other. Call it at the end of the module that defines
    the model: its exports name this module, which has to be imported (`--import=MODULE`, or in
    Python) before they are loaded.

    Raises UserError for a name that another model has, or classes that cannot be a model's.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"the name of a model is {name!r}, expected letters, digits and _")
    for given, parent in ((config_class, ModelConfig), (model_class, ViewSynthesisModel)):
        if not (isinstance(given, type) and issubclass(given, parent)):
            raise UserError(f"{name}: {given!r} is no subclass of lvsm_jax.{parent.__name__}")
    if not config_class.__dataclass_params__.frozen or config_class in (ModelConfig, *_own(name)):
        raise UserError(
            f"{name}: {config_class.__name__} must be a frozen dataclass of this model alone"
        )
    known = CONFIGS.get(name)
    # The same module once more, as a notebook has it, takes the place of the first.
    if name in _OURS or (known and _place(known) != _place(config_class)):
        raise UserError(f"there is a model {name} already, of {known.__module__}")
    if known:
        del _MODELS[known]
    _MODELS[config_class], CONFIGS[name] = model_class, config_class


def _own(name: str) -> list[type[ModelConfig]]:
    """The configurations of all models of other names."""
    return [config for other, config in CONFIGS.items() if other != name]


def _place(config_class: type[ModelConfig]) -> tuple[str, str]:
    return config_class.__module__, config_class.__qualname__


def module_of(config: ModelConfig) -> str | None:
    """The module that registers the model of a configuration; None for those that are here."""
    return None if architecture_of(config) in _OURS else _MODELS[type(config)].__module__


def config_class(architecture: Any) -> type[ModelConfig]:
    """The configuration of an architecture; raises UserError for a name that is none."""
    if architecture not in CONFIGS:
        raise UserError(
            f"architecture is {architecture!r}, expected one of {tuple(CONFIGS)}, or one that an "
            "imported module registers (--import=MODULE)"
        )
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
    """The name of a configuration's architecture; UserError where nobody registered it."""
    for name, cls in CONFIGS.items():
        if cls is type(config):
            return name
    raise UserError(f"{type(config).__name__} is of no model that lvsm_jax.register was told of")


def new_model(config: ModelConfig, rngs: nnx.Rngs) -> ViewSynthesisModel:
    """A model with random weights."""
    return _MODELS[type(config)](config, rngs=rngs)


def abstract_model(config: ModelConfig) -> ViewSynthesisModel:
    """A model with shapes and types in place of weights; costs nothing."""
    return jax.eval_shape(lambda key: new_model(config, nnx.Rngs(key)), jax.random.key(0))
