"""The parts that all models share: attention, MLP, blocks, patches, stacked layers.

Modules are Flax NNX modules used as plain pytrees: `jax.jit`, `jax.grad` and `jax.lax.scan` take
them directly. Nothing has a bias unless it is asked for.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.attention import SAVED_ATTENTION, attention, attention_entropy, platform
from lvsm_jax.models.halves import Film, KeysValues, each_half
from lvsm_jax.models.norms import LayerNorm, RMSNorm, gelu
from lvsm_jax.models.prope import Positions, SequencePositions
from lvsm_jax.models.sharded_attention import sharded_attention
from lvsm_jax.parallel.mesh import axes_of, reshard, sharded_like

Init = Callable[..., Array]
Module = TypeVar("Module", bound=nnx.Module)
Places = Positions | SequencePositions | None  # of tokens; None where attention knows no cameras

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "dots", "full")


class Linear(nnx.Module):
    """A linear map, computed in `dtype` from float32 weights `[in, out]`; a bias starts at zero."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: Init,
        dtype: str,
        rngs: nnx.Rngs,
        bias: bool = False,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """Maps the last dimension."""
        y = self._product(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def in_parts(self, x: Float[Array, "*batch d"], parts: int) -> tuple[Array, ...]:
        """The map without its bias, its result in equal parts along the last dimension.

        The weights are cut, which are small: to cut the result would be a copy of each part, and
        its gradient another.
        """
        return tuple(self._product(x, part) for part in jnp.split(self.kernel[...], parts, axis=1))

    def _product(self, x: Float[Array, "*batch d"], kernel: Array) -> Float[Array, "*batch e"]:
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        *axes, _ = axes_of(x)
        # TPUs lay channels before tokens, as their attention wants them. Of all scenes in one, the
        # results would be copied for each scene to have its own: a fifth of a layer's cycles.
        # And dimensions that are both cut cannot be made one.
        if platform(x) == "tpu" or any(axes[1:]):
            return _matmul(x, kernel)
        # Two dimensions only: on CPUs the gradient of a matmul with more is 2.5 times as slow.
        rows = _matmul(x.reshape(-1, x.shape[-1]), kernel)
        # Left to itself, JAX may hand a mesh axis of size one to another dimension.
        out = sharded_like(x, *axes)
        return rows.reshape((*x.shape[:-1], rows.shape[-1]), out_sharding=out)


@jax.custom_vjp
def _matmul(x: Float[Array, "*batch d"], kernel: Float[Array, "d e"]) -> Float[Array, "*batch e"]:
    # A sharded kernel is gathered once a pass. Left to itself, XLA gathers it for each product: a
    # third time for the gradient of `x`.
    return x @ reshard(kernel)


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    # Not by calling `_matmul`, in which remat policies would not see the matmul.
    return x @ reshard(kernel), (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    # Summed over the devices and cut as the kernel in one step, instead of summed everywhere.
    out = sharded_like(kernel, *axes_of(kernel))
    to_kernel = jax.lax.dot_general(x, grad, ((rows, rows), ((), ())), out_sharding=out)
    return grad @ reshard(kernel).T, to_kernel


_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseKV:
    """Keys and values `[*batch, s, m, c]` of all tokens that queries attend to."""

    k: Any  # after their norm
    v: Any
    implementation: str = dataclasses.field(metadata={"static": True})  # of attention

    def attend(self, q: Float[Array, "*batch t m c"]) -> Float[Array, "*batch t m c"]:
        """Attention of queries to these keys and values."""
        attend = attention if axes_of(self.k)[-3] is None else sharded_attention
        return attend(q, self.k, self.v, implementation=self.implementation)

    def relative_entropy(self, q: Float[Array, "b t m c"]) -> Float[Array, ""]:
        """Mean entropy of the weights of `attend`, as a share of the largest it can be."""
        return attention_entropy(q, self.k).mean() / jnp.log(self.k.shape[1])

    @property
    def joined(self) -> "DenseKV":
        """Of `[b, v, s, m, c]`: the tokens of all views as one sequence, `[b, v·s, m, c]`."""
        k, v = (einops.rearrange(x, "b v s m c -> b (v s) m c") for x in (self.k, self.v))
        return dataclasses.replace(self, k=k, v=v)


class Attention(nnx.Module):
    """Multi-head attention; positions are of tokens' views.

    Queries and keys are RMS-normalised where `config.qk_norm` says so. Keys and values are computed
    apart from the queries, because those of an input view depend on that view alone and can be
    kept. `config` is a `lvsm_jax.models.base.ModelConfig`.
    """

    def __init__(self, config: Any, *, init: Init, rngs: nnx.Rngs):
        self.head_dim, self.implementation = config.head_dim, config.attention

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, init=init, dtype=config.dtype, rngs=rngs)

        self.to_q = linear(config.width, config.width)
        if config.halves == "joint":
            self.to_kv = linear(config.width, 2 * config.width)
        else:
            keys = linear(config.width, config.width)
            self.to_kv = KeysValues(keys, each_half(config, lambda width: linear(width, width)))
        self.out = each_half(config, lambda width: linear(width, width))
        self.q_norm = RMSNorm(config.head_dim) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim) if config.qk_norm else None

    def keys_values(self, tokens: Float[Array, "*batch s d"], positions: Places = None) -> DenseKV:
        """What queries read of the tokens."""
        k, v = (
            einops.rearrange(part, "... (m c) -> ... m c", c=self.head_dim)
            for part in self.to_kv.in_parts(tokens, 2)
        )
        k = k if self.k_norm is None else self.k_norm(k)
        if positions is not None:
            k, v = positions.to_keys(k), positions.to_keys(v)
        return DenseKV(k, v, self.implementation)

    def queries(
        self, tokens: Float[Array, "*batch t d"], positions: Places = None
    ) -> Float[Array, "*batch t m c"]:
        """The tokens' queries, after their norm."""
        q = einops.rearrange(self.to_q(tokens), "... (m c) -> ... m c", c=self.head_dim)
        q = q if self.q_norm is None else self.q_norm(q)
        return q if positions is None else positions.to_queries(q)

    def outputs(
        self, attended: Float[Array, "*batch t m c"], positions: Places = None
    ) -> Float[Array, "*batch t d"]:
        """What the tokens get of what their queries attended to."""
        if positions is not None:
            attended = positions.to_outputs(attended)
        return self.out(einops.rearrange(attended, "... m c -> ... (m c)"))

    def __call__(
        self,
        tokens: Float[Array, "*batch t d"],
        attended: Float[Array, "*batch s d"],
        positions: Places = None,
    ) -> Float[Array, "*batch t d"]:
        """What `tokens` read from the `attended` ones, all of the same view or sequence."""
        keys_values = self.keys_values(attended, positions)
        return self.outputs(keys_values.attend(self.queries(tokens, positions)), positions)


class MLP(nnx.Module):
    """`d → ratio·d → d` with the exact (erf) GELU."""

    def __init__(
        self, width: int, ratio: int, *, init: Init, dtype: str, rngs: nnx.Rngs, bias: bool = False
    ):
        options = {"init": init, "dtype": dtype, "rngs": rngs, "bias": bias}
        self.up = Linear(width, ratio * width, **options)
        self.down = Linear(ratio * width, width, **options)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Applies the two maps."""
        # The GELU is in float32: fused with the matmul before, TPUs write that to memory as well.
        hidden = jax.lax.optimization_barrier(self.up(x))
        return self.down(gelu(hidden))


class TransformerBlock(nnx.Module):
    """Pre-norm self-attention, then an MLP; `norm_scale` gives the norms a learned scale."""

    def __init__(self, config: Any, *, init: Init, norm_scale: bool, rngs: nnx.Rngs):
        def norm(width: int) -> LayerNorm:
            return LayerNorm(width, scale=norm_scale)

        self.branch_scale = config.branch_scale
        self.norm1 = each_half(config, norm)
        self.self_attention = Attention(config, init=init, rngs=rngs)
        self.norm2 = each_half(config, norm)
        self.mlp = make_mlp(config, init=init, rngs=rngs)
        self.film = make_film(config, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "*batch n d"],
        sequence: Float[Array, "*batch s d"] | None = None,
        positions: Places = None,
    ) -> Float[Array, "*batch n d"]:
        """The tokens after this layer; `positions` are inside their views, or of a sequence.

        They attend to a `sequence` that holds themselves, by default to each other.
        """
        normed = self.norm1(tokens)
        attended = normed if sequence is None else self.norm1(sequence)
        branch = self.self_attention(normed, attended, positions)
        tokens = tokens + self.branch_scale * branch
        tokens = tokens if self.film is None else self.film(tokens)
        return tokens + self.branch_scale * self.mlp(self.norm2(tokens))


def make_mlp(config: Any, *, init: Init, rngs: nnx.Rngs) -> nnx.Module:
    """The MLP of a layer."""
    options = {"init": init, "dtype": config.dtype, "rngs": rngs}
    return each_half(config, lambda width: MLP(width, config.mlp_ratio, **options))


def make_film(config: Any, *, rngs: nnx.Rngs) -> Film | None:
    """What modulates the halves of a layer's tokens, where `config.halves` says so."""
    if config.halves != "decoupled_film":
        return None
    half, zeros = config.width // 2, nnx.initializers.zeros
    options = {"init": zeros, "dtype": config.dtype, "rngs": rngs, "bias": True}
    return Film(lambda: LayerNorm(half, scale=True), lambda: Linear(half, config.width, **options))


class Transformer(nnx.Module):
    """Self-attention blocks over a sequence of which only some tokens are wanted at the end.

    The last block is outside the stack, because it computes the wanted tokens alone.
    """

    def __init__(
        self,
        config: Any,
        num_layers: int,
        *,
        init_of: Callable[[Array | int], Init] | None = None,
        rngs: nnx.Rngs,
    ):
        """`init_of` gives a layer's initialisation by its number; by default `residual_init`."""

        def block(index: Array | int, rngs: nnx.Rngs) -> TransformerBlock:
            init = (init_of or residual_init)(index)
            return TransformerBlock(config, init=init, norm_scale=True, rngs=rngs)

        self.remat, self.unroll = config.remat, config.unroll
        self.blocks = stack_layers(block, num_layers - 1, rngs) if num_layers > 1 else None
        self.last = block(num_layers - 1, rngs)

    def __call__(
        self,
        wanted: Float[Array, "*batch n d"],
        others: Float[Array, "*batch s d"] | None = None,
        positions: SequencePositions | None = None,
    ) -> Float[Array, "*batch n d"]:
        """The wanted tokens after the last block; all tokens attend to all.

        Positions are of the views of a sequence, of which the wanted tokens are the first.
        """
        tokens = wanted if others is None else jnp.concatenate([wanted, others], axis=-2)
        if self.blocks is not None:
            tokens, _, _ = scan_layers(
                lambda tokens, block: (block(tokens, positions=positions), None),
                tokens,
                self.blocks,
                remat=self.remat,
                unroll=self.unroll,
            )
        last = recomputed(lambda block, *arguments: block(*arguments), self.remat)
        return last(self.last, tokens[..., : wanted.shape[-2], :], tokens, positions)


def residual_init(index: Array | int) -> Init:
    """The reference's initialisation of layer `index`, from 0 on: narrower with depth."""
    return nnx.initializers.normal(0.02 / jnp.sqrt(2 * (index + 1)))


def broadcast_scenes(x: Float[Array, "n d"], like: Float[Array, "b ..."]) -> Float[Array, "b n d"]:
    """The same tokens for every scene of `like`, on the devices where that scene is."""
    out = sharded_like(like, axes_of(like)[0], None, None)
    return jnp.broadcast_to(x, (len(like), *x.shape), out_sharding=out)


def check_image_size(height: int, width: int, patch: int) -> None:
    """Raises UserError unless the patch divides the image."""
    if height < 1 or width < 1 or height % patch or width % patch:
        raise UserError(
            f"images are {height}×{width} pixels, expected multiples of the patch size {patch}"
        )


def patchify(pixels: Float[Array, "b v h w ch"], patch: int) -> Float[Array, "b v n pc"]:
    """Flattens patches in the order (row, column, channel); patches go row by row."""
    # One dimension is split or merged at a time: JAX infers the sharding of such reshapes only.
    rows = einops.rearrange(pixels, "b v (y p) w ch -> b v y p w ch", p=patch)
    grid = einops.rearrange(rows, "b v y p (x q) ch -> b v y x p q ch", q=patch)
    patches = einops.rearrange(grid, "b v y x p q ch -> b v y x (p q ch)")
    return einops.rearrange(patches, "b v y x pc -> b v (y x) pc")


def unpatchify(
    tokens: Float[Array, "b v n pc"], patch: int, height: int, width: int
) -> Float[Array, "b v {height} {width} ch"]:
    """The inverse of `patchify`."""
    patches = einops.rearrange(tokens, "b v (y x) pc -> b v y x pc", x=width // patch)
    grid = einops.rearrange(patches, "b v y x (p q ch) -> b v y p x q ch", p=patch, q=patch)
    rows = einops.rearrange(grid, "b v y p x q ch -> b v y p (x q) ch")
    return einops.rearrange(rows, "b v y p w ch -> b v (y p) w ch")


def stack_layers(make: Callable[..., Module], layers: int, rngs: nnx.Rngs) -> Module:
    """One module whose arrays hold all layers, stacked first: `make(index, rngs)` of each."""
    keys = jax.random.split(rngs.params(), layers)
    return jax.vmap(lambda index, key: make(index, nnx.Rngs(key)))(jnp.arange(layers), keys)


def scan_layers(
    body: Callable,
    carry: Array,
    layers: object,
    taps: Sequence[int] = (),
    *,
    remat: str,
    unroll: bool = False,
) -> tuple[Array, Any, tuple[Array, ...]]:
    """`jax.lax.scan` over stacked layers, which also returns the carry after the layers `taps`.

    They count from 1, and no other layer's carry is kept. Of `remat`, `none` recomputes nothing in
    the backward pass; `dots` all but the results of linear layers and of fused attention; `full`
    everything but each layer's input. `unroll` makes one program of all layers, and no loop.
    """

    def tapped(state: tuple, layer: tuple) -> tuple:
        (carry, kept), (index, layer) = state, layer
        carry, output = body(carry, layer)
        # Not jnp.where: its condition would have the size of the carry.
        kept = tuple(
            jax.lax.select(index == tap, carry, old) for tap, old in zip(taps, kept, strict=True)
        )
        return (carry, kept), output

    layers = _cast_linear(layers)
    state = carry, tuple(jnp.zeros_like(carry) for _ in taps)
    count = len(jax.tree.leaves(layers)[0])
    xs = jnp.arange(1, count + 1), layers
    # A loop keeps the forward pass apart from the backward one. Layers beside each other in one
    # program would find that both compute the same, and recompute nothing.
    step = recomputed(tapped, remat, prevent_cse=unroll or count == 1)
    (carry, kept), outputs = jax.lax.scan(step, state, xs, unroll=unroll)
    return carry, outputs, kept


def _cast_linear(layers: Any) -> Any:
    """Weights of linear layers in the dtype that they compute in: cast for all layers at once.

    Cut out of the stack in float32, each layer's would be copied before they are cast.
    """

    def cast(node: Any) -> Any:
        if not isinstance(node, Linear):
            return node
        return jax.tree.map(lambda x: x.astype(node.dtype), node)

    return jax.tree.map(cast, layers, is_leaf=lambda node: isinstance(node, Linear))


def recomputed(function: Callable, remat: str, *, prevent_cse: bool = True) -> Callable:
    """`jax.checkpoint` of the function with the policy that `remat` names, see `scan_layers`."""
    if remat == "none":
        return function
    policy = _is_matmul_or_attention if remat == "dots" else None
    return jax.checkpoint(function, prevent_cse=prevent_cse, policy=policy)


def _is_matmul_or_attention(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """The policy `dots`: which results the backward pass does not compute again."""
    policies = jax.checkpoint_policies
    splash = policies.save_only_these_names(SAVED_ATTENTION)
    either = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, splash)
    # cuDNN's kernel gives its results no names that a policy could save.
    cudnn = primitive.name.startswith("dot_product_attention_fwd")
    return cudnn or either(primitive, *arguments, **parameters)
