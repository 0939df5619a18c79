"""KV-cache slots sharded over the `view` axis: slot i is on device i mod n.

So no device has two views more than another. The functions here are each device's work on its own
slots, by `per_device`; without a mesh there is one device.

Letters: `b` scenes, `v` slots for views, `k` views at a time, `t` query tokens, `n` tokens a view,
`l` layers, `m` heads, `c` head size.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from lvsm_jax.models.attention import attention_with_lse, merge_attention
from lvsm_jax.models.blocked_attention import Partial
from lvsm_jax.models.sharded_attention import merge_shards
from lvsm_jax.parallel.mesh import SCENES, axes_of, per_device, spec, view_devices

# Axes that cut arrays with one entry a scene, arrays of views, and the store.
BY_SCENE, BY_VIEW, STORE = (SCENES,), (SCENES, "view"), (None, SCENES, "view")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """Keys or values; int8 ones with a scale for each token and head."""

    data: Any  # `[l, b, v, n, m, c]`
    scale: Any  # `[l, b, v, n, m]` float32 to multiply int8 by, else None


def quantize(x: Float[Array, "*batch c"], dtype: str) -> Stored:
    """Keys or values as a cache of this dtype stores them."""
    if dtype != "int8":
        return Stored(x.astype(dtype), None)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-20) / 127
    return Stored(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedKV:
    """Keys and values of one layer in a cache.

    `slots_at_once` of a device are read in a round of attention, and what is left in a last one.
    """

    k: Any  # `Stored`, of all layers
    v: Any
    layer: Any
    num_views: Any  # `[b]`
    implementation: str = dataclasses.field(metadata={"static": True})  # of attention
    slots_at_once: int = dataclasses.field(metadata={"static": True})

    def attend(self, q: Float[Array, "b t m c"]) -> Float[Array, "b t m c"]:
        """Attention of queries to the views that are there, some slots at a time.

        The number of rounds is known only when the program runs: it compiles once, and its time
        follows the views.
        """
        sharded_queries = any(axes_of(q)[1:])
        queries = spec(*(BY_VIEW if sharded_queries else BY_SCENE))
        own = dataclasses.replace(
            self, k=spec(*STORE), v=spec(*STORE), layer=spec(), num_views=spec(*BY_SCENE)
        )

        def local(q: Array, own: CachedKV) -> Array:
            return merge_shards(own._attend_to_own, q, sharded_queries=sharded_queries)[0]

        return per_device(local, (queries, own), queries)(q, self)

    def _attend_to_own(self, q: Float[Array, "b t m c"]) -> Partial:
        """Attention to the slots of this device."""
        at_once, (slots, tokens) = self.slots_at_once, self.k.data.shape[2:4]
        # Of views 0 to num_views - 1, those that are here.
        own_views = (self.num_views - _device() + view_devices() - 1) // view_devices()

        def load(stored: Stored, first: Array, count: int) -> Float[Array, "b s m c"]:
            def some(x: Array) -> Array:
                start = (self.layer, 0, first, *[0] * (x.ndim - 3))
                return jax.lax.dynamic_slice(x, start, (1, x.shape[1], count, *x.shape[3:]))[0]

            x = some(stored.data).astype(q.dtype)
            if stored.scale is not None:
                x = x * some(stored.scale)[..., None].astype(q.dtype)
            return x.reshape(len(x), -1, *x.shape[3:])

        def attend_to_some(first: Array | int, count: int, done: Partial) -> Partial:
            views = jnp.clip(own_views - first, 0, count)
            k, v = load(self.k, first, count), load(self.v, first, count)
            lengths = None if count == 1 else views * tokens
            out, lse = attention_with_lse(
                q, k, v, lengths=lengths, implementation=self.implementation
            )
            some = (views > 0)[:, None, None]
            # Kernels make anything of no keys, also NaN, which a weight of zero would not remove.
            out = jnp.where(some[..., None], out.astype(jnp.float32), 0.0)
            return merge_attention(done, (out, jnp.where(some, lse, -jnp.inf)))

        whole, rest = divmod(slots, at_once)
        rounds = jnp.minimum(-(-own_views.max() // at_once), whole)
        nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], -jnp.inf)
        done = jax.lax.fori_loop(
            0, rounds, lambda i, done: attend_to_some(i * at_once, at_once, done), nothing
        )
        if rest == 0:
            return done
        first = whole * at_once
        last = functools.partial(attend_to_some, first, rest)
        return jax.lax.cond(own_views.max() > first, last, lambda done: done, done)


def pick_own(views: Any, first: Int[Array, "b"]) -> Any:
    """Of `k` new views `[b, k, ...]` with numbers from `first` on, those of each device's slots.

    They are `[b, n * ceil(k / n), ...]`, cut by `view` over `n` devices; where a device has one
    fewer than others, another view fills up.
    """
    k = jax.tree.leaves(views)[0].shape[1]

    def local(views: Any, first: Array) -> Any:
        own = jnp.minimum(_own(first, k), k - 1)
        scenes = jnp.arange(len(first))[:, None]
        return jax.tree.map(lambda x: x[scenes, own], views)

    by_scene = spec(*BY_SCENE)
    return per_device(local, (by_scene, by_scene), spec(*BY_VIEW))(views, first)


def write_own(store: Any, new: Any, first: Int[Array, "b"], k: int) -> Any:
    """The store `[l, b, v, ...]` with `k` new views, which `pick_own` gave; in place if donated.

    They have the numbers from `first` on. Those without a slot are not written.
    """

    def local(store: Any, new: Any, first: Array) -> Any:
        own = _own(first, k)
        slots = (first[:, None] + own) // view_devices()
        return _write(store, jnp.where(own < k, slots, -1), new)

    by_slot = spec(*STORE)
    return per_device(local, (by_slot, by_slot, spec(*BY_SCENE)), by_slot)(store, new, first)


def remove(
    store: Any, num_views: Int[Array, "b"], indices: Int[Array, "b k"]
) -> tuple[Any, Int[Array, "b"]]:
    """The store without some views, from the highest number down, and how many are left.

    Each time the last view takes the number of the removed one, so one view goes from device to
    device. For numbers that a scene does not have, such as -1, nothing is removed.
    """

    def local(store: Any, num_views: Array, indices: Array) -> tuple[Any, Array]:
        for index in indices.T:
            exists = (index >= 0) & (index < num_views)
            moved = jax.tree.map(functools.partial(_view, number=num_views - 1), store)
            here = exists & (index % view_devices() == _device())
            store = _write(store, jnp.where(here, index // view_devices(), -1)[:, None], moved)
            num_views = num_views - exists
        return store, num_views

    by_slot, by_scene = spec(*STORE), spec(*BY_SCENE)
    specs = (by_slot, by_scene, by_scene), (by_slot, by_scene)
    return per_device(local, *specs)(store, num_views, indices)


def _view(x: Shaped[Array, "l b v ..."], number: Int[Array, "b"]) -> Shaped[Array, "l b 1 ..."]:
    """One view of each scene, from the device that has it."""
    view = x[:, jnp.arange(len(number)), number // view_devices()]
    if view_devices() > 1:
        is_here = (number % view_devices() == _device()).reshape(-1, *[1] * (view.ndim - 2))
        view = jax.lax.psum(jnp.where(is_here, view, 0), "view")
    return view[:, :, None]


def _write(store: Any, slots: Int[Array, "b k"], new: Any) -> Any:
    """The store with new views in these slots of each scene; -1 and too high ones are dropped."""
    scenes = jnp.arange(slots.shape[0])[:, None]

    def write(old: Array, new: Array) -> Array:
        where = jnp.where(slots < 0, old.shape[2], slots)  # -1 would count from the end
        return old.at[:, scenes, where].set(new, mode="drop")

    return jax.tree.map(write, store, new)


def _own(first: Int[Array, "b"], k: int) -> Int[Array, "b j"]:
    """Which of `k` views numbered from `first` on are this device's; `k` and more are none."""
    n = view_devices()
    return (_device() - first)[:, None] % n + n * jnp.arange(-(-k // n))


def _device() -> Array | int:
    """Index of this device along `view`."""
    return jax.lax.axis_index("view") if view_devices() > 1 else 0
