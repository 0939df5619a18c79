"""AdamW as the references use it: decay on matrices only, warm-up, clipping, skipped steps."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lvsm_jax.common.checks import check_at_least, check_choice, check_field
from lvsm_jax.common.tree import map_named

Scalar = Float[Array, ""]

# Ends of the names of weights that are matrices, and not norms' scales; only they decay.
_MATRICES = ("kernel", "latents")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, clipping, skipped steps and EMA; rates and decays default to LVSM's.

    Attributes:
        learning_rate: peak of the schedule.
        schedule: after warm-up: `constant`, or `cosine` down to zero at the last step.
        warmup_steps: steps of linear warm-up; the first step has rate zero.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: on matrices only, decoupled.
        clip_norm: largest global norm of the gradient; longer gradients are scaled to it.
        skip_factor: a step whose gradient norm exceeds `skip_factor · clip_norm` is skipped;
            0 skips for gradients that are not finite only.
        skip_after: first step at which a norm can be too large: gradients are long at the start.
        schedule_counts_skipped: whether a skipped step advances the schedule of the learning rate,
            as in the published programs; moments never count it.
        ema_decay: of the averaged weights that are evaluated and exported; 0 keeps none.
    """

    learning_rate: float = 4e-4
    schedule: str = "cosine"
    warmup_steps: int = 3000
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    skip_factor: float = 10.0
    skip_after: int = 3000
    schedule_counts_skipped: bool = False
    ema_decay: float = 0.0

    def __post_init__(self):
        check_choice("optimizer.schedule", self.schedule, ("constant", "cosine"))
        for field in ("learning_rate", "eps", "clip_norm"):
            check_field("optimizer", self, field, getattr(self, field) > 0, "above 0")
        zeros = ("warmup_steps", "weight_decay", "skip_factor", "skip_after")
        check_at_least("optimizer", self, **dict.fromkeys(zeros, 0))
        for field in ("beta1", "beta2", "ema_decay"):
            check_field("optimizer", self, field, 0 <= getattr(self, field) < 1, "in [0, 1)")


def learning_rate(config: OptimizerConfig, num_steps: int, step: Int[Array, ""] | int) -> Scalar:
    """The rate of a step, counted from 0."""
    # Optax's schedules warm up by `(0 - peak) * (1 - share) + peak`, which cancels digits.
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return jnp.asarray(config.learning_rate * warmup)
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))
    return config.learning_rate * warmup * cosine


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, AdamW with the decay mask, and the schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate=lambda step: learning_rate(config, num_steps, step),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: map_named(lambda name, _: name.endswith(_MATRICES), params),
        ),
    )


def take_if(
    sound: Array, new: optax.OptState, old: optax.OptState, config: OptimizerConfig
) -> optax.OptState:
    """The optimizer's state after a step that was taken, or skipped."""

    def choose(new: Any, old: Any) -> Any:
        if config.schedule_counts_skipped and _is_schedule(new):
            return new
        return jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, old)

    return jax.tree.map(choose, new, old, is_leaf=_is_schedule)


def schedule_step(state: optax.OptState) -> Int[Array, ""]:
    """The step at which the schedule of the learning rate is."""
    (schedule,) = filter(_is_schedule, jax.tree.leaves(state, is_leaf=_is_schedule))
    return schedule.count


def _is_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


def step_is_sound(
    config: OptimizerConfig, step: Int[Array, ""], loss: Scalar, grad_norm: Scalar
) -> Array:
    """Whether a step may be taken: a finite loss, and a gradient of finite and usual length."""
    sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if config.skip_factor:
        usual = grad_norm <= config.skip_factor * config.clip_norm
        sound &= usual | (step < config.skip_after)
    return sound
