"""Rendering view by view: keys and values of the input views, each computed once.

A cache is a pytree and the functions are pure. A view's keys and values depend on that view alone,
so adding, replacing and removing one costs the same however many there are, and the order of views
does not matter. The cache that a function is given is donated: go on with the one it returns.

Letters: `b` scenes, `v` places for views, `k` views at a time, `t` targets, `n` tokens a view,
`l` layers, `m` heads, `c` head size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from lvsm_jax.attention import attention_with_lse, merge_attention, skips_by_length
from lvsm_jax.cameras import Cameras
from lvsm_jax.efficient_lvsm import EfficientLVSM
from lvsm_jax.latents import LatentCache, check_latents_fit, render_latents
from lvsm_jax.lvsm import LVSMEncoderDecoder
from lvsm_jax.model import ViewSynthesisModel, check_image_size, check_images

Numbers = int | np.integer | Sequence[Any] | np.ndarray


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ViewCache:
    """Keys and values of the input views of some scenes.

    Attributes:
        store: for each cross-attention of a layer (the published model has one) the pair of its
            keys and values, each a `Stored`.
        num_views: `[b]` int32, views that each scene has; they are numbered from 0.
        image_size: height and width of the input views in pixels.
    """

    store: Any
    num_views: Any
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def batch(self) -> int:
        """Scenes."""
        return self.store[0][0].data.shape[1]

    @property
    def max_views(self) -> int:
        """Places for the views of a scene."""
        return self.store[0][0].data.shape[2]

    @property
    def dtype(self) -> str:
        """Of keys and values."""
        return str(self.store[0][0].data.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, used or not."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.store))


def init_cache(
    model: ViewSynthesisModel, batch: int, max_views: int, image_size: tuple[int, int]
) -> ViewCache:
    """An empty cache: 2 · layers · tokens · width numbers a view, of the model's `cache_dtype`.

    Args:
        model: whose keys and values it is for.
        batch: scenes.
        max_views: most views of a scene.
        image_size: height and width of the input views in pixels.

    Raises:
        ValueError: a model that has no such cache, or a size that cannot be.
    """
    _check_model(model)
    config = model.config
    dtype = config.cache_dtype or config.dtype
    for name, value in (("batch", batch), ("max_views", max_views)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    check_image_size(*image_size, config.patch_size)
    tokens = image_size[0] * image_size[1] // config.patch_size**2
    shape = (config.num_layers, batch, max_views, tokens, config.width // config.head_dim)

    def empty() -> Stored:
        scale = jnp.zeros(shape, jnp.float32) if dtype == "int8" else None
        return Stored(jnp.zeros((*shape, config.head_dim), dtype), scale)

    cache = ViewCache(
        store=tuple((empty(), empty()) for _ in range(config.num_cross_attentions)),
        num_views=jnp.zeros(batch, jnp.int32),
        image_size=tuple(image_size),
    )
    return _beside(model, cache)


def add_views(
    model: ViewSynthesisModel,
    cache: ViewCache,
    images: Array | np.ndarray,
    cameras: Cameras,
    *,
    num_new: Numbers | None = None,
) -> ViewCache:
    """Adds `k` views to every scene, after those that are there; encodes these alone.

    Args:
        model: the weights.
        cache: donated.
        images: `[b, k, h, w, 3]`, float in [0, 1].
        cameras: `[b, k]`.
        num_new: how many of them, from the first, each scene takes; all by default.

    Raises:
        ValueError: a scene without so many free places, or what does not fit together; the cache
            is untouched.
    """
    _check_views(model, cache, images, cameras)
    k, views = images.shape[1], known(cache.num_views)
    if k == 0:
        raise ValueError(f"images of shape {images.shape}: no views to add")
    new = _integers(k if num_new is None else num_new)
    if new.ndim > 1 or (new.ndim and len(new) != cache.batch) or (new < 0).any() or (new > k).any():
        raise ValueError(f"num_new is {new.tolist()}, expected {cache.batch} numbers from 0 to {k}")
    new = np.broadcast_to(new, cache.batch)
    if views is not None and (views + new > cache.max_views).any():
        scene = int((views + new).argmax())
        raise ValueError(
            f"{new[scene]} more views do not fit: scene {scene} has {views[scene]} of at most "
            f"{cache.max_views}"
        )
    return _add_views(model, cache, jnp.asarray(images), cameras, new)


def replace_view(
    model: ViewSynthesisModel,
    cache: ViewCache,
    index: Numbers,
    images: Array | np.ndarray,
    cameras: Cameras,
) -> ViewCache:
    """Puts another view in the place of one of every scene.

    Args:
        model: the weights.
        cache: donated.
        index: number of the view to replace, one for all scenes or `[b]`.
        images: `[b, 1, h, w, 3]`, float in [0, 1].
        cameras: `[b, 1]`.

    Raises:
        ValueError: a number that a scene does not have, or what does not fit together; the cache
            is untouched.
    """
    _check_views(model, cache, images, cameras)
    if images.shape[1] != 1:
        raise ValueError(f"replace_view takes one view of each scene, got {images.shape[1]}")
    index = _integers(index)
    if index.ndim and index.shape != (cache.batch,):
        raise ValueError(f"index has shape {index.shape}, expected one number or [{cache.batch}]")
    places = np.broadcast_to(index, cache.batch)[:, None]
    if (places < 0).any():
        raise ValueError(f"index is {index.tolist()}, but views are numbered from 0")
    _check_places(cache, places)
    return _replace_view(model, cache, places, jnp.asarray(images), cameras)


def remove_views(cache: ViewCache, indices: Numbers) -> ViewCache:
    """Removes views; the last view takes the number of a removed one.

    Args:
        cache: donated.
        indices: numbers as they are before the call: one, `[k]` for every scene alike, or `[b, k]`,
            in which -1 stands for none.

    Raises:
        ValueError: a number that a scene does not have, or that is given twice; the cache is
            untouched.
    """
    indices = np.atleast_1d(_integers(indices))
    if indices.size == 0:
        return cache
    if indices.ndim > 2 or (indices.ndim == 2 and indices.shape[0] != cache.batch):
        raise ValueError(f"indices have shape {indices.shape}, expected [k] or [{cache.batch}, k]")
    indices = np.broadcast_to(indices, (cache.batch, indices.shape[-1]))
    _check_places(cache, indices)
    # From the highest down, the view that moves is never one still to be removed.
    return _remove_views(cache, np.sort(indices, axis=1)[:, ::-1])


def render(
    model: ViewSynthesisModel,
    cache: ViewCache | LatentCache,
    cameras: Cameras,
    image_size: tuple[int, int] | None = None,
    *,
    targets_at_once: int = 8,
) -> Float[Array, "b t h w 3"]:
    """Renders cameras from the views of a cache.

    The time follows the views that are there, not the places.

    Args:
        model: the weights.
        cache: of at least one view for each scene, or an LVSMEncoderDecoder's latents
            (`lvsm_jax.latent_cache`); not donated.
        cameras: `[b, t]`, any number.
        image_size: height and width of the renders, to which the intrinsics belong; by default
            that of the inputs.
        targets_at_once: more targets are rendered in groups of so many, in constant memory.

    Raises:
        ValueError: a scene without views, or what does not fit together.
    """
    groups = list(render_path(model, cache, cameras, image_size, targets_at_once=targets_at_once))
    return groups[0] if len(groups) == 1 else jnp.concatenate(groups, axis=1)


def render_path(
    model: ViewSynthesisModel,
    cache: ViewCache | LatentCache,
    cameras: Cameras,
    image_size: tuple[int, int] | None = None,
    *,
    targets_at_once: int = 8,
) -> Iterator[Float[Array, "b k h w 3"]]:
    """As `render`, one group of `targets_at_once` targets after the other."""
    if isinstance(cache, LatentCache):
        check_latents_fit(model, cache)
    else:
        _check_fits(model, cache)
        views = known(cache.num_views)
        if views is not None and views.min() < 1:
            raise ValueError(f"nothing to render from: the scenes have {views.tolist()} views")
    cameras.check("cameras")
    height, width = cache.image_size if image_size is None else image_size
    check_image_size(height, width, model.config.patch_size)
    if 0 in cameras.shape:
        raise ValueError(f"cameras of shape {cameras.shape}: nothing to render")
    if cameras.shape[0] != cache.batch:
        raise ValueError(f"cameras of {cameras.shape[0]} scenes with a cache of {cache.batch}")
    if targets_at_once < 1:
        raise ValueError(f"targets_at_once is {targets_at_once}, expected at least 1")
    return _groups(model, cache, cameras, (int(height), int(width)), targets_at_once)


def _groups(
    model: ViewSynthesisModel,
    cache: ViewCache | LatentCache,
    cameras: Cameras,
    size: tuple[int, int],
    at_once: int,
) -> Iterator[Array]:
    program = render_latents if isinstance(cache, LatentCache) else _render
    t = cameras.shape[1]
    if t <= at_once:
        yield program(model, cache, cameras, size)
        return
    for start in range(0, t, at_once):
        # The last group is filled up with its last camera: another size would be compiled anew.
        places = np.minimum(np.arange(start, start + at_once), t - 1)
        group = jax.tree.map(lambda x, places=places: jnp.asarray(x)[:, places], cameras)
        yield program(model, cache, group, size)[:, : t - start]


@functools.partial(jax.jit, donate_argnums=1)
def _add_views(
    model: EfficientLVSM, cache: ViewCache, images: Array, cameras: Cameras, num_new: Array
) -> ViewCache:
    # What is written after the views that count is not read, and is overwritten.
    places = cache.num_views[:, None] + jnp.arange(images.shape[1])
    store = _write(cache.store, places, _new(model, cache, images, cameras))
    return dataclasses.replace(cache, store=store, num_views=cache.num_views + num_new)


@functools.partial(jax.jit, donate_argnums=1)
def _replace_view(
    model: EfficientLVSM, cache: ViewCache, places: Array, images: Array, cameras: Cameras
) -> ViewCache:
    store = _write(cache.store, places, _new(model, cache, images, cameras))
    return dataclasses.replace(cache, store=store)


@functools.partial(jax.jit, donate_argnums=0)
def _remove_views(cache: ViewCache, indices: Int[Array, "b k"]) -> ViewCache:
    store, views = cache.store, cache.num_views
    scenes = jnp.arange(cache.batch)
    for index in jnp.split(indices, indices.shape[1], axis=1):
        last = views - 1
        moved = jax.tree.map(lambda x, last=last: x[:, scenes, last][:, :, None], store)
        # A place that is not there is not written.
        store = _write(store, jnp.where(index < 0, cache.max_views, index), moved)
        views = views - (index[:, 0] >= 0)
    return dataclasses.replace(cache, store=store, num_views=views)


@functools.partial(jax.jit, static_argnums=3)
def _render(
    model: EfficientLVSM, cache: ViewCache, cameras: Cameras, image_size: tuple[int, int]
) -> Float[Array, "b t h w 3"]:
    return model.decode_from(
        lambda _, layer: tuple(_reader(model, cache, pair, layer) for pair in cache.store),
        jnp.arange(model.config.num_layers),
        cameras,
        *image_size,
    )


def _new(model: EfficientLVSM, cache: ViewCache, images: Array, cameras: Cameras) -> Any:
    """What the store will hold of new views, `[l, b, k, n, ...]`."""
    keys_values = model.keys_values(images, cameras)
    return jax.tree.map(functools.partial(_stored, dtype=cache.dtype), keys_values)


def _stored(x: Float[Array, "*batch c"], dtype: str) -> Stored:
    if dtype != "int8":
        return Stored(x.astype(dtype), None)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-20) / 127
    return Stored(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def _write(store: Any, places: Int[Array, "b k"], new: Any) -> Any:
    """The store with new views in these places of each scene; in place, for it is donated."""
    scenes = jnp.arange(places.shape[0])[:, None]
    return jax.tree.map(
        lambda old, new: old.at[:, scenes, places].set(new, mode="drop"), store, new
    )


def _reader(
    model: EfficientLVSM, cache: ViewCache, pair: tuple[Stored, Stored], layer: Array
) -> Callable[[Array], Array]:
    """Attention of queries `[b, t*n, m, c]` to the views that are there, a few at a time.

    The number of rounds is known only when the program runs: it compiles once, and its time follows
    the views.
    """
    tokens, implementation = pair[0].data.shape[3], model.config.attention

    def attend(q: Array) -> Array:
        at_once = places_at_once(cache, implementation, q.dtype)

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
            views = jnp.clip(cache.num_views - first, 0, at_once)
            k, v = (load(stored, first) for stored in pair)
            lengths = None if at_once == 1 else views * tokens
            out, lse = attention_with_lse(q, k, v, lengths=lengths, implementation=implementation)
            lse = jnp.where((views > 0)[:, None, None], lse, -jnp.inf)
            return merge_attention(done, (out.astype(jnp.float32), lse))

        rounds = -(-cache.num_views.max() // at_once)
        nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], -jnp.inf)
        return jax.lax.fori_loop(0, rounds, round_, nothing)[0].astype(q.dtype)

    return attend


def places_at_once(cache: ViewCache, implementation: str, dtype: Any) -> int:
    """How many places a round of attention takes: a divisor of their number.

    All where the kernel is told the lengths, and skips what is empty by itself. Others would hold
    scores for all places at a time, and compute them.
    """
    return cache.max_views if skips_by_length(implementation, dtype) else 1


def _beside(model: Any, cache: ViewCache) -> ViewCache:
    """The cache on the devices of the weights; elsewhere, the first call would compile twice."""
    weight = jax.tree.leaves(model)[0]
    if not getattr(weight, "committed", False):
        return cache
    sharding = weight.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, P())
    return jax.device_put(cache, sharding)


def known(x: Any) -> np.ndarray | None:
    """The values of an array, or None while tracing."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def _check_model(model: Any) -> None:
    if not isinstance(model, EfficientLVSM):
        latents = "; lvsm_jax.latent_cache keeps what it has of all views together"
        raise ValueError(
            f"{type(model).__name__} has no keys and values of a view that stay the same when "
            "views or targets are added, as EfficientLVSM has"
            + (latents if isinstance(model, LVSMEncoderDecoder) else "")
        )


def _check_fits(model: Any, cache: ViewCache) -> None:
    _check_model(model)
    layers, _, _, tokens, heads, head_dim = cache.store[0][0].data.shape
    config = model.config
    for name, ours, theirs in (
        ("layers", layers, config.num_layers),
        ("heads", heads, config.width // config.head_dim),
        ("channels a head", head_dim, config.head_dim),
        ("patch size", math.isqrt(math.prod(cache.image_size) // tokens), config.patch_size),
        ("cross-attentions a layer", len(cache.store), config.num_cross_attentions),
    ):
        if ours != theirs:
            raise ValueError(f"the cache has {ours} {name}, but the model {theirs}")


def _check_views(model: Any, cache: ViewCache, images: Any, cameras: Cameras) -> None:
    _check_fits(model, cache)
    check_images(images, cameras, model.config.patch_size, "cameras")
    if images.shape[2:4] != cache.image_size:
        raise ValueError(
            f"images of {images.shape[2]}×{images.shape[3]} pixels, but the cache is for "
            f"{cache.image_size[0]}×{cache.image_size[1]}"
        )
    if images.shape[0] != cache.batch:
        raise ValueError(f"images of {images.shape[0]} scenes with a cache of {cache.batch}")


def _integers(indices: Any) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.size and not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"views are numbered by integers, got {indices.dtype}")
    return indices.astype(np.int64)  # of one type, for which programs are compiled once


def _check_places(cache: ViewCache, places: Int[np.ndarray, "b k"]) -> None:
    views = known(cache.num_views)
    for scene, row in enumerate(places.tolist()):
        given = [view for view in row if view != -1]
        if len(set(given)) < len(given):
            raise ValueError(f"scene {scene}: {given} holds a view twice")
        if views is None:
            continue
        unknown = [view for view in given if not 0 <= view < views[scene]]
        if unknown:
            raise ValueError(
                f"scene {scene} has no views {unknown}: its {views[scene]} are numbered from 0"
            )
