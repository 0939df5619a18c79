"""Training losses: a weighted sum of named terms."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

LossTerm = Callable[[Float[Array, "b t h w 3"], Float[Array, "b t h w 3"]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The weight of each term; a term of weight 0 is not computed.

    Attributes:
        mse: mean squared error of the pixels.
    """

    mse: float = 1.0

    def __post_init__(self):
        weights = dataclasses.asdict(self)
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise ValueError(f"loss weights {weights}: expected none below and one above zero")


def mse(render: Float[Array, "b t h w 3"], target: Float[Array, "b t h w 3"]) -> Float[Array, ""]:
    """Mean squared error, in float32."""
    return jnp.square(render.astype(jnp.float32) - target.astype(jnp.float32)).mean()


_TERMS: dict[str, LossTerm] = {"mse": mse}


def total_loss(
    config: LossConfig, render: Float[Array, "b t h w 3"], target: Float[Array, "b t h w 3"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum, and each term before its weight."""
    weights = {name: weight for name, weight in dataclasses.asdict(config).items() if weight}
    terms = {name: _TERMS[name](render, target) for name in weights}
    return sum(weights[name] * term for name, term in terms.items()), terms
