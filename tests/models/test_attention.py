"""Every implementation of attention against a plain formula, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lvsm_jax.models import blocked_attention
from lvsm_jax.models.attention import attention, attention_with_lse, merge_attention
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh


def tokens(t, s, dtype=jnp.float32, batch=(2,), heads=2, size=64):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(*batch, n, heads, size) for n in (t, s, s)]
    return [jax.random.normal(k, n, dtype) for k, n in zip(keys, shapes, strict=True)]


def formula(q, k, v):
    scores = jnp.einsum("...tmc,...smc->...mts", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("...mts,...smc->...tmc", jax.nn.softmax(scores, axis=-1), v)


def value_and_gradients(function, qkv):
    """Of a sum in which every output counts differently."""
    weights = jnp.cos(jnp.arange(qkv[0].size, dtype=jnp.float32)).reshape(qkv[0].shape)
    return jax.value_and_grad(lambda qkv: (function(*qkv) * weights).sum())(qkv)


def assert_as_formula(implementation, qkv, atol):
    def ours(q, k, v):
        return attention(q, k, v, implementation=implementation)

    np.testing.assert_allclose(ours(*qkv), formula(*qkv), atol=atol)
    for a, b in zip(
        *(jax.tree.leaves(value_and_gradients(f, qkv)) for f in (ours, formula)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=10 * atol)


@pytest.mark.parametrize("implementation", ["auto", "xla", "blocked"])
def test_implementations_agree(implementation):
    assert_as_formula(implementation, tokens(24, 40, batch=(2, 3)), atol=1e-5)


@pytest.mark.parametrize("scores", [8 * 40, 2 * 24 * 40])
def test_blocked_in_several_blocks(monkeypatch, scores):
    monkeypatch.setattr(blocked_attention, "_SCORES_ON_CPUS", scores)
    assert_as_formula("blocked", tokens(24, 40, batch=(3,)), atol=1e-5)


def test_splash_interpreted():
    assert_as_formula("splash", tokens(128, 256, batch=(1,)), atol=1e-4)


def test_splash_needs_whole_tiles():
    with pytest.raises(ValueError, match="multiples of 128, got 24 queries and 128 keys"):
        attention(*tokens(24, 128), implementation="splash")


def test_unknown_implementation():
    with pytest.raises(ValueError, match="'flash'"):
        attention(*tokens(8, 8), implementation="flash")


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_bfloat16_has_a_float32_softmax(implementation):
    q, k, v = tokens(32, 512, jnp.bfloat16)
    ours = attention(q, k, v, implementation=implementation)
    assert ours.dtype == jnp.bfloat16
    exact = formula(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(ours.astype(np.float32), exact, atol=4e-3)


def test_scenes_on_several_devices():
    mesh = make_mesh(MeshConfig(4, 2))
    qkv = tokens(8, 16, batch=(8, 2))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(qkv, NamedSharding(mesh, P(("data", "fsdp"))))
        ours = jax.jit(attention)(*sharded)
    assert ours.sharding.spec[0] == ("data", "fsdp")
    np.testing.assert_allclose(ours, formula(*qkv), atol=1e-5)


def test_splash_on_several_devices():
    mesh = make_mesh(MeshConfig(4, 2))
    qkv = tokens(128, 128, batch=(8,), heads=1)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(qkv, NamedSharding(mesh, P(("data", "fsdp"))))
        ours = jax.jit(functools.partial(attention, implementation="splash"))(*sharded)
    np.testing.assert_allclose(ours, formula(*qkv), atol=1e-4)


def assert_as_xla_in_bfloat16(implementation):
    qkv = tokens(256, 512, jnp.bfloat16)
    ours, expected = (
        jax.tree.leaves(value_and_gradients(functools.partial(attention, implementation=name), qkv))
        for name in (implementation, "xla")
    )
    for a, b in zip(ours, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05 * np.abs(b).max())


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_parts_merge_to_the_whole(implementation):
    q, k, v = tokens(24, 40)
    nothing = jnp.zeros(q.shape), jnp.full(q.shape[:-1], -jnp.inf)
    merged = merge_attention(nothing, nothing)
    for part in (slice(0, 8), slice(8, 9), slice(9, 40)):
        out = attention_with_lse(q, k[:, part], v[:, part], implementation=implementation)
        merged = merge_attention(merged, out)
    np.testing.assert_allclose(merged[0], formula(q, k, v), atol=1e-5)
    scores = jnp.einsum("btmc,bsmc->btms", q, k) / np.sqrt(q.shape[-1])
    np.testing.assert_allclose(merged[1], jax.nn.logsumexp(scores, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_only_the_first_keys_count(implementation):
    q, k, v = tokens(24, 40)
    lengths = jnp.array([40, 7])
    ours, _ = attention_with_lse(q, k, v, lengths=lengths, implementation=implementation)
    for scene, length in enumerate(lengths):
        expected = formula(q[scene], k[scene, :length], v[scene, :length])
        np.testing.assert_allclose(ours[scene], expected, atol=1e-5)


def assert_bfloat16_has_a_float32_lse(implementation):
    """Of bfloat16 keys, split in two and merged: a log-sum-exp rounded to bfloat16 is 0.03 off."""
    q, k, v = tokens(128, 256, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    lengths = jnp.array([128, 57])

    def parts(q, k, v, implementation):
        some = {"lengths": lengths, "implementation": implementation}
        return [
            attention_with_lse(q, k[:, i : i + 128], v[:, i : i + 128], **some) for i in (0, 128)
        ]

    found, expected = parts(q, k, v, implementation), parts(*exact, "xla")
    for (_, lse), (_, expected_lse) in zip(found, expected, strict=True):
        assert lse.dtype == jnp.float32
        np.testing.assert_allclose(lse, expected_lse, atol=2e-4)
    merged, _ = merge_attention(*found)
    np.testing.assert_allclose(merged, merge_attention(*expected)[0], atol=6e-3)


def test_the_lse_is_not_rounded():
    assert_bfloat16_has_a_float32_lse("xla")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention needs an NVIDIA GPU")
def test_cudnn():
    assert_as_xla_in_bfloat16("cudnn")
    assert_bfloat16_has_a_float32_lse("cudnn")


@pytest.mark.tpu
@pytest.mark.skipif(jax.default_backend() != "tpu", reason="compiled splash attention needs a TPU")
def test_splash_compiled():
    assert_as_xla_in_bfloat16("splash")


def test_blocked_in_bfloat16():
    assert_as_xla_in_bfloat16("blocked")
