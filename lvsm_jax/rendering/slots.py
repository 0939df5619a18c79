"""Where the views of a cache are, and what is done to them there.

On a mesh the places are spread over the axis `view`: view number i is on device i mod n of it, so
that no device has two more than another. Every function here is each device's work on its own
places, under `jax.shard_map`; without a mesh there is one device, and n is 1.

Letters: `b` scenes, `v` places for views, `k` views at a time, `t` query tokens, `n` tokens a view,
`l` layers, `m` heads, `c` head size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lvsm_jax.models.attention import attention_with_lse, merge_attention
from lvsm_jax.models.spread_attention import all_tokens, merge_over
from lvsm_jax.parallel.mesh import SCENES, cut, in_use


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """Keys or values `[l, b, v, n, m, c]`; int8 ones with a scale for each token and head.

    Attributes:
        data: the numbers.
        scale: `[l, b, v, n, m]` float32 to multiply int8 by, else None.
    """

    data: Any
    scale: Any


# The axes that cut arrays on a mesh: those with one entry a scene, views, and the store.
BY_SCENE, BY_VIEW, STORE = (SCENES,), (SCENES, "view"), (None, SCENES, "view")


def stored(x: Float[Array, "*batch c"], dtype: str) -> Stored:
    """Keys or values as a cache of this dtype keeps them."""
    if dtype != "int8":
        return Stored(x.astype(dtype), None)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-20) / 127
    return Stored(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def pick_own(views: Any, first: Int[Array, "b"]) -> Any:
    """Of `k` new views with numbers from `first` on, those that each device has places for.

    Args:
        views: pytree of `[b, k, ...]`.
        first: number of the first one in each scene.

    Returns:
        The same of `[b, n * ceil(k / n), ...]`, cut by `view`; where a device has places for fewer
        than others, another view fills up.
    """
    k = jax.tree.leaves(views)[0].shape[1]

    def local(views: Any, first: Array) -> Any:
        own = jnp.minimum(_own(first, k), k - 1)
        scenes = jnp.arange(len(first))[:, None]
        return jax.tree.map(lambda x: x[scenes, own], views)

    return _on_devices(local, [BY_SCENE, BY_SCENE], [BY_VIEW])(views, first)


def write_own(store: Any, new: Any, first: Int[Array, "b"], k: int) -> Any:
    """The store with the `k` new views that `pick_own` gave; in place where it is donated.

    Args:
        store: pytree of `[l, b, v, ...]`.
        new: the same of what `pick_own` returned.
        first: number of the first one in each scene; numbers that have no place are not written.
        k: new views, without those that fill up.
    """

    def local(store: Any, new: Any, first: Array) -> Any:
        own = _own(first, k)
        places = (first[:, None] + own) // _count()
        return _write(store, jnp.where(own < k, places, -1), new)

    return _on_devices(local, [STORE, STORE, BY_SCENE], [STORE])(store, new, first)


def remove(
    store: Any, num_views: Int[Array, "b"], indices: Int[Array, "b k"]
) -> tuple[Any, Int[Array, "b"]]:
    """The store without some views, from the highest number down, and how many are left.

    Each time the last view takes the number of the removed one: it alone goes from device to
    device. Where the number is -1 nothing is removed.
    """

    def local(store: Any, num_views: Array, indices: Array) -> tuple[Any, Array]:
        scenes = jnp.arange(len(num_views))
        for index in indices.T:
            last = num_views - 1

            def view(x: Array, last: Array = last) -> Array:
                moved = x[:, scenes, last // _count()]
                if not _is_spread():
                    return moved[:, :, None]
                is_here = (last % _count() == _me()).reshape(-1, *[1] * (moved.ndim - 2))
                return jax.lax.psum(jnp.where(is_here, moved, 0), "view")[:, :, None]

            here = (index >= 0) & (index % _count() == _me())
            places = jnp.where(here, index // _count(), -1)
            store = _write(store, places[:, None], jax.tree.map(view, store))
            num_views = num_views - (index >= 0)
        return store, num_views

    return _on_devices(local, [STORE, BY_SCENE, BY_SCENE], [STORE, BY_SCENE])(
        store, num_views, indices
    )


def reader(
    pair: tuple[Stored, Stored],
    num_views: Int[Array, "b"],
    layer: Int[Array, ""],
    implementation: str,
    at_once: int,
) -> Callable[[Float[Array, "b t m c"]], Float[Array, "b t m c"]]:
    """Attention of queries to the views that are there, a few at a time.

    The number of rounds is known only when the program runs: it compiles once, and its time follows
    the views.

    Args:
        pair: keys and values.
        num_views: of each scene.
        layer: whose keys and values.
        implementation: of attention.
        at_once: places that a round takes on each device, a divisor of their number there.
    """

    def attend(q: Array) -> Array:
        spec = jax.typeof(q).sharding.spec if in_use() else ()
        scatter = any(spec[1:])  # targets too are spread

        def local(q: Array, pair: Any, num_views: Array, layer: Array) -> Array:
            every = all_tokens(q, "view", scatter)
            views = (num_views - _me() + _count() - 1) // _count()
            part = _attend_to_own(every, pair, views, layer, implementation, at_once)
            if _is_spread():
                return merge_over(part, "view", scatter=scatter, dtype=q.dtype)[0]
            return part[0].astype(q.dtype)

        queries = BY_VIEW if scatter else BY_SCENE
        inputs = [queries, STORE, BY_SCENE, ()]
        return _on_devices(local, inputs, [queries])(q, pair, num_views, layer)

    return attend


def _attend_to_own(
    q: Float[Array, "b t m c"],
    pair: tuple[Stored, Stored],
    num_views: Int[Array, "b"],
    layer: Int[Array, ""],
    implementation: str,
    at_once: int,
) -> tuple[Float[Array, "b t m c"], Float[Array, "b t m"]]:
    """Attention to the first `num_views` places of one device, and its logarithms of sums."""
    tokens = pair[0].data.shape[3]

    def load(stored: Stored, first: Array) -> Array:
        def part(x: Array) -> Array:
            start = (layer, 0, first, *[0] * (x.ndim - 3))
            return jax.lax.dynamic_slice(x, start, (1, x.shape[1], at_once, *x.shape[3:]))[0]

        x = part(stored.data).astype(q.dtype)
        if stored.scale is not None:
            x = x * part(stored.scale)[..., None].astype(q.dtype)
        b, k, n, m, c = x.shape
        return x.reshape(b, k * n, m, c)

    def round_(i: Array, done: Any) -> Any:
        first = i * at_once
        views = jnp.clip(num_views - first, 0, at_once)
        k, v = (load(stored, first) for stored in pair)
        lengths = None if at_once == 1 else views * tokens
        out, lse = attention_with_lse(q, k, v, lengths=lengths, implementation=implementation)
        some = (views > 0)[:, None, None]
        # Kernels make anything of no keys, also NaN, which a weight of zero would not remove.
        out = jnp.where(some[..., None], out.astype(jnp.float32), 0.0)
        return merge_attention(done, (out, jnp.where(some, lse, -jnp.inf)))

    rounds = -(-num_views.max() // at_once)
    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], -jnp.inf)
    return jax.lax.fori_loop(0, rounds, round_, nothing)


def _write(store: Any, places: Int[Array, "b k"], new: Any) -> Any:
    """The store with new views in these places of each scene; -1 and too high ones are dropped."""
    scenes = jnp.arange(places.shape[0])[:, None]

    def write(old: Array, new: Array) -> Array:
        where = jnp.where(places < 0, old.shape[2], places)  # -1 would count from the end
        return old.at[:, scenes, where].set(new, mode="drop")

    return jax.tree.map(write, store, new)


def _own(first: Int[Array, "b"], k: int) -> Int[Array, "b j"]:
    """Which of `k` views numbered from `first` on are this device's; `k` and more are none."""
    return (_me() - first)[:, None] % _count() + _count() * jnp.arange(-(-k // _count()))


def _on_devices(function: Callable, inputs: list[tuple], outputs: list[tuple]) -> Callable:
    """The function under `jax.shard_map`, for the axes that cut each argument and result."""
    if not in_use():
        return function
    in_specs, out_specs = (tuple(cut(*axes) for axes in part) for part in (inputs, outputs))
    out_specs = out_specs if len(out_specs) > 1 else out_specs[0]
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _is_spread() -> bool:
    return in_use() and _count() > 1


def _count() -> int:
    """Devices over which the places are spread."""
    return jax.lax.axis_size("view") if in_use() else 1


def _me() -> Array | int:
    """Number of this device among them."""
    return jax.lax.axis_index("view") if in_use() else 0
