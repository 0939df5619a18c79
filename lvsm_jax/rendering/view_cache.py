"""Rendering view by view: keys and values of the input views, each computed once.

A cache is a pytree and the functions are pure. A view's keys and values depend on that view alone,
so adding, replacing and removing one costs the same however many there are, and the order of views
does not matter. The cache that a function is given is donated: go on with the one it returns.

No function waits for a device. Shapes are checked, and values that the host has: numbers of views,
and images and cameras that are NumPy arrays; UserError leaves the cache untouched. How many views a
scene has is on the device, so what does not fit is left out: views beyond `max_views` are not
added, and numbers that a scene does not have are neither replaced nor removed. `lvsm_jax.Session`
knows its views, and raises errors.

Letters: `b` scenes, `k` views at a time, `t` targets, `l` layers.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.attention import skips_by_length
from lvsm_jax.models.base import ViewSynthesisModel, check_images
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.copy_head import CopySource
from lvsm_jax.models.efficient_lvsm import DecoderBlock, EfficientLVSM
from lvsm_jax.models.layers import check_image_size
from lvsm_jax.models.lvsm import LVSMEncoderDecoder
from lvsm_jax.parallel.mesh import check_batch, reshard, spec, view_devices
from lvsm_jax.rendering import slots
from lvsm_jax.rendering.latents import LatentCache, check_latents_fit, check_same
from lvsm_jax.rendering.slots import CachedKV, Stored

# Numbers of views, which the host has.
Numbers = int | np.integer | Sequence[Any] | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ViewCache:
    """Keys and values of the input views of some scenes; the decoder reads them as `InputViews`.

    Attributes:
        store: a pair of `Stored` keys and values for each cross-attention of a layer.
        num_views: `[b]` int32, views that each scene has; they are numbered from 0.
        image_size: height and width of the input views in pixels.
        copy_store: what a head that copies reads of the views, with a first dimension of one as
            that of the layers; None without such a head. It is float32 whatever the dtype of keys
            and values, pixels too: they are a few per cent of the memory.
    """

    store: Any
    num_views: Any
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    copy_store: CopySource | None = None

    @property
    def batch(self) -> int:
        """Scenes."""
        return self.store[0][0].data.shape[1]

    @property
    def max_views(self) -> int:
        """Slots for the views of a scene."""
        return self.store[0][0].data.shape[2]

    @property
    def size(self) -> tuple[Int[Array, "b"], int]:
        """Views of each scene, and tokens of a view."""
        return self.num_views, self.store[0][0].data.shape[3]

    @property
    def dtype(self) -> str:
        """Of keys and values."""
        return str(self.store[0][0].data.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept of views, in slots that are used or not."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.store, self.copy_store)))

    @property
    def copied(self) -> CopySource | None:
        """What a head that copies reads."""
        if self.copy_store is None:
            return None
        views = jax.tree.map(lambda x: x.squeeze(0), self.copy_store)
        return dataclasses.replace(views, num_views=self.num_views)

    @property
    def by_layer(self) -> Int[Array, "l"]:
        """Numbers of the layers."""
        return jnp.arange(len(self.store[0][0].data))

    def keys_values(self, block: DecoderBlock, own: Int[Array, ""]) -> tuple[CachedKV, ...]:
        """What this layer of the decoder reads."""
        implementation = block.cross_attention.implementation
        at_once = slots_at_once(self, implementation, block.cross_attention.to_kv.dtype)
        return tuple(
            CachedKV(k, v, own, self.num_views, implementation, at_once) for k, v in self.store
        )


def init_cache(
    model: ViewSynthesisModel, batch: int, max_views: int, image_size: tuple[int, int]
) -> ViewCache:
    """An empty cache: 2 · layers · tokens · width numbers a view, of the model's `cache_dtype`.

    For a head that copies 4 · (3 · pixels + 128 · tokens + 20) bytes a view are added.

    Where a mesh is set (`jax.set_mesh`), scenes are spread over its devices as in training, and the
    slots of a scene over the axis `view`. All other functions then need that mesh too.

    Raises UserError for a model other than EfficientLVSM, a size (height and width of the input
    views in pixels) that cannot be, or one that the mesh does not divide.
    """
    _check_model(model)
    check_positive(batch=batch, max_views=max_views)
    config = model.config
    dtype = config.cache_dtype or config.dtype
    check_image_size(*image_size, config.patch_size)
    check_batch(jax.sharding.get_abstract_mesh(), "a cache", batch, max_views)
    tokens = image_size[0] * image_size[1] // config.patch_size**2
    shape = (config.num_layers, batch, max_views, tokens, config.width // config.head_dim)
    by_scene, by_slot = spec(*slots.BY_SCENE), spec(*slots.STORE)

    def empty() -> Stored:
        scale = jnp.zeros(shape, jnp.float32, out_sharding=by_slot) if dtype == "int8" else None
        return Stored(jnp.zeros((*shape, config.head_dim), dtype, out_sharding=by_slot), scale)

    cache = ViewCache(
        store=tuple((empty(), empty()) for _ in range(config.num_cross_attentions)),
        num_views=jnp.zeros(batch, jnp.int32, out_sharding=by_scene),
        image_size=tuple(image_size),
        copy_store=_empty_copies(model, batch, max_views, image_size),
    )
    weight = jax.tree.leaves(model)[0]
    if spec() is not None or not getattr(weight, "committed", False):
        return cache  # it is on the mesh, or goes wherever it is used
    # To the devices of the weights, so that the first call does not compile twice.
    sharding = weight.sharding
    if isinstance(sharding, jax.NamedSharding):
        sharding = jax.NamedSharding(sharding.mesh, jax.P())
    return jax.device_put(cache, sharding)


def add_views(
    model: ViewSynthesisModel,
    cache: ViewCache,
    images: Array | np.ndarray,
    cameras: Cameras,
    *,
    num_new: Numbers | None = None,
) -> ViewCache:
    """Adds `k` views to every scene, after those that are there; encodes these alone.

    Images are `[b, k, h, w, 3]`, float in [0, 1], and cameras `[b, k]`. Each scene takes the first
    `num_new`, one number or `[b]`; all by default. Of views for which a scene has no slot left,
    none is added: `num_views` stays at `max_views`. Raises UserError for more views than slots, or
    what does not fit together.
    """
    _check_views(model, cache, images, cameras)
    k = images.shape[1]
    if k == 0:
        raise UserError(f"images of shape {images.shape}: no views to add")
    new = _integers(k if num_new is None else num_new)
    if new.shape not in ((), (cache.batch,)) or (new < 0).any() or (new > k).any():
        raise UserError(f"num_new is {new.tolist()}, expected {cache.batch} numbers from 0 to {k}")
    if (new > cache.max_views).any():
        raise UserError(f"{new.max()} more views do not fit: a scene has at most {cache.max_views}")
    new = np.broadcast_to(new, cache.batch)
    return _add_views(model, cache, jnp.asarray(images), cameras, new)


def replace_view(
    model: ViewSynthesisModel,
    cache: ViewCache,
    index: Numbers,
    images: Array | np.ndarray,
    cameras: Cameras,
) -> ViewCache:
    """Replaces one view of every scene, by images `[b, 1, h, w, 3]` with cameras `[b, 1]`.

    `index` is its number, one for all scenes or `[b]`; a scene without a view of that number stays
    as it is. Raises UserError for a number beyond the slots, or what does not fit together.
    """
    _check_views(model, cache, images, cameras)
    if images.shape[1] != 1:
        raise UserError(f"replace_view takes one view of each scene, got {images.shape[1]}")
    index = _integers(index)
    if index.shape not in ((), (cache.batch,)):
        raise UserError(f"index has shape {index.shape}, expected one number or [{cache.batch}]")
    if (index < 0).any():
        raise UserError(f"index is {index.tolist()}, but views are numbered from 0")
    numbers = np.broadcast_to(index, cache.batch)
    _check_numbers(cache, numbers[:, None])
    return _replace_view(model, cache, numbers, jnp.asarray(images), cameras)


def remove_views(cache: ViewCache, indices: Numbers) -> ViewCache:
    """Removes views; the last view takes the number of a removed one.

    `indices` are numbers as they are before the call: one, `[k]` for every scene alike, or
    `[b, k]`, in which -1 stands for none. Numbers that a scene does not have remove nothing. Raises
    UserError for a number beyond the slots, or one that is given twice.
    """
    indices = np.atleast_1d(_integers(indices))
    if indices.size == 0:
        return cache
    if indices.shape[:-1] not in ((), (cache.batch,)):
        raise UserError(f"indices have shape {indices.shape}, expected [k] or [{cache.batch}, k]")
    indices = np.broadcast_to(indices, (cache.batch, indices.shape[-1]))
    _check_numbers(cache, indices)
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
    """Renders cameras `[b, t]` from a cache of views, or of latents (`lvsm_jax.latent_cache`).

    The time follows the views that are there, not the slots. Renders of a scene without views are
    finite, and mean nothing. The cache is not donated. `image_size` is height and width of the
    renders, to which the intrinsics belong; by default that of the inputs. More targets than
    `targets_at_once` are rendered group by group, in constant memory. Raises UserError for what
    does not fit together.
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
    check_fits = check_latents_fit if isinstance(cache, LatentCache) else _check_fits
    check_fits(model, cache)
    cameras.check("cameras", read_device=False)
    height, width = cache.image_size if image_size is None else image_size
    check_image_size(height, width, model.config.patch_size)
    if 0 in cameras.shape:
        raise UserError(f"cameras of shape {cameras.shape}: nothing to render")
    if cameras.shape[0] != cache.batch:
        raise UserError(f"cameras of {cameras.shape[0]} scenes with a cache of {cache.batch}")
    check_positive(targets_at_once=targets_at_once)
    t, size = cameras.shape[1], (int(height), int(width))
    if t <= targets_at_once:
        return iter([_render(model, cache, cameras, size)])

    def group(start: int) -> Array:
        # The last one is filled up with its last camera: another size would be compiled anew.
        taken = np.minimum(np.arange(start, start + targets_at_once), t - 1)
        some = jax.tree.map(lambda x: jnp.asarray(x)[:, taken], cameras)
        return _render(model, cache, some, size)[:, : t - start]

    return map(group, range(0, t, targets_at_once))


def _empty_copies(
    model: EfficientLVSM, batch: int, max_views: int, image_size: tuple[int, int]
) -> CopySource | None:
    if model.copy_head is None:
        return None
    shape = batch, max_views
    views = (
        jnp.zeros((*shape, *image_size, 3)),
        Cameras(
            jnp.zeros((*shape, 4, 4)),
            jnp.zeros((*shape, 4)),
            jnp.zeros(shape) if model.config.time_channel else None,
        ),
    )
    kept = jax.eval_shape(lambda model, *views: model.encode(*views).copied, model, *views)
    by_slot = spec(*slots.STORE)
    return jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype, out_sharding=by_slot), kept)


@functools.partial(jax.jit, donate_argnums=1)
def _add_views(
    model: EfficientLVSM, cache: ViewCache, images: Array, cameras: Cameras, num_new: Array
) -> ViewCache:
    # What is written after the views that count is not read, and is overwritten.
    stores = _encode_into(model, cache, cache.num_views, images, cameras)
    num_views = cache.num_views + reshard(num_new, *slots.BY_SCENE)
    num_views = jnp.minimum(num_views, cache.max_views)
    return dataclasses.replace(cache, **stores, num_views=num_views)


@functools.partial(jax.jit, donate_argnums=1)
def _replace_view(
    model: EfficientLVSM, cache: ViewCache, index: Array, images: Array, cameras: Cameras
) -> ViewCache:
    # A view written after those that count is not read.
    index = reshard(index, *slots.BY_SCENE)
    return dataclasses.replace(cache, **_encode_into(model, cache, index, images, cameras))


@functools.partial(jax.jit, donate_argnums=0)
def _remove_views(cache: ViewCache, indices: Int[Array, "b k"]) -> ViewCache:
    indices = reshard(indices, *slots.BY_SCENE)
    stores, num_views = slots.remove(_stores(cache), cache.num_views, indices)
    return dataclasses.replace(cache, **stores, num_views=num_views)


@functools.partial(jax.jit, static_argnums=3)
def _render(
    model: ViewSynthesisModel, cache: ViewCache | LatentCache, cameras: Cameras, size: tuple
) -> Float[Array, "b t h w 3"]:
    memory = cache.tokens if isinstance(cache, LatentCache) else cache
    # As in training, targets are sharded where the axis divides them.
    divides = cameras.shape[1] % view_devices() == 0
    cameras = reshard(cameras, *(slots.BY_VIEW if divides else slots.BY_SCENE))
    # All targets on all devices of the axis, because the caller slices them.
    return reshard(model.decode(memory, cameras, *size), *slots.BY_SCENE)


def _encode_into(
    model: EfficientLVSM, cache: ViewCache, first: Array, images: Array, cameras: Cameras
) -> dict[str, Any]:
    """The stores with views under the numbers from `first` on; each device encodes its own."""
    views = reshard((images, cameras), *slots.BY_SCENE)
    keys_values, copied = model.keys_values(*slots.pick_own(views, first))
    new = tuple(tuple(slots.quantize(x, cache.dtype) for x in (kv.k, kv.v)) for kv in keys_values)
    new = {"store": new, "copy_store": jax.tree.map(lambda x: x[None], copied)}
    return slots.write_own(_stores(cache), new, first, images.shape[1])


def _stores(cache: ViewCache) -> dict[str, Any]:
    """All that is kept of views, `[l, b, v, ...]`."""
    return {"store": cache.store, "copy_store": cache.copy_store}


def slots_at_once(cache: ViewCache, implementation: str, dtype: str) -> int:
    """Slots of a device that a round of attention reads; the last round reads what is left.

    Up to 8, in rounds of nearly the same size, where the kernel takes lengths and skips empty
    slots: that keeps it busy. One elsewhere, for other kernels would compute the scores of empty
    slots too.
    """
    if not skips_by_length(implementation, dtype):
        return 1
    slots = cache.max_views // view_devices()
    rounds = -(-slots // 8)
    return -(-slots // rounds)


def _check_model(model: Any) -> None:
    if isinstance(model, EfficientLVSM):
        return
    hint = ""
    if isinstance(model, LVSMEncoderDecoder):
        hint = "; lvsm_jax.latent_cache keeps what it has of all views together"
    raise UserError(
        f"{type(model).__name__} has no keys and values of a view that stay the same when views or "
        f"targets are added, as EfficientLVSM has{hint}"
    )


def _check_fits(model: Any, cache: ViewCache) -> None:
    _check_model(model)
    layers, _, _, tokens, heads, head_dim = cache.store[0][0].data.shape
    config = model.config
    check_same(
        ("layers", layers, config.num_layers),
        ("heads", heads, config.width // config.head_dim),
        ("channels a head", head_dim, config.head_dim),
        ("patch size", math.isqrt(math.prod(cache.image_size) // tokens), config.patch_size),
        ("cross-attentions a layer", len(cache.store), config.num_cross_attentions),
        ("heads that copy", int(cache.copy_store is not None), int(config.copy_head)),
    )


def check_positive(**numbers: int) -> None:
    """Raises UserError unless each of the numbers, given by their names, is at least 1."""
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected at least 1")


def _check_views(model: Any, cache: ViewCache, images: Any, cameras: Cameras) -> None:
    _check_fits(model, cache)
    check_images(images, cameras, model.config.patch_size, read_device=False)
    scenes, _, *size, _ = images.shape
    if tuple(size) != cache.image_size:
        ours, theirs = ("×".join(map(str, sides)) for sides in (size, cache.image_size))
        raise UserError(f"images of {ours} pixels, but the cache is for {theirs}")
    if scenes != cache.batch:
        raise UserError(f"images of {scenes} scenes with a cache of {cache.batch}")


def _integers(indices: Any) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.size and not np.issubdtype(indices.dtype, np.integer):
        raise UserError(f"views are numbered by integers, got {indices.dtype}")
    return indices.astype(np.int64)  # of one type, for which programs are compiled once


def _check_numbers(cache: ViewCache, numbers: Int[np.ndarray, "b k"]) -> None:
    for scene, row in enumerate(numbers.tolist()):
        given = [number for number in row if number != -1]
        if len(set(given)) < len(given):
            raise UserError(f"scene {scene}: {given} holds a view twice")
        if unknown := [number for number in given if not 0 <= number < cache.max_views]:
            most = f"at most {cache.max_views} are numbered from 0"
            raise UserError(f"scene {scene} has no views {unknown}: {most}")
