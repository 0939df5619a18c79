"""Parts of the program that are skipped where nothing needs them, and compiled on their own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def when(needed: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, or zeros where the scalar `needed` is false.

    It is also a line for the compiler, across which nothing is fused. On a CPU what crosses it is
    computed once, and not again in each loop that uses it; and as products and sums round otherwise
    where they are fused, a line keeps numbers the same in programs for one and for many devices.
    """
    like = jax.eval_shape(function, *inputs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.cond(needed, function, lambda *_: zeros, *inputs)
