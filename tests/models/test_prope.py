"""PRoPE: equal to the formula written out with full matrices, and blind to the world frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.spatial.transform import Rotation

import lvsm_jax
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models import prope
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.models.layers import Attention

HEIGHT, WIDTH, PATCH = 16, 24, 8
TOKENS, HEADS, HEAD_DIM = 6, 2, 16


def cameras(seed, views, focal=20.0):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (2, views, 1, 1))
    c2w[..., :3, :3] = Rotation.random(2 * views, rng).as_matrix().reshape(2, views, 3, 3)
    c2w[..., :3, 3] = rng.uniform(-1, 1, (2, views, 3))
    fxfycxcy = np.array([focal, 1.1 * focal, 11, 7.5]) * rng.uniform(0.9, 1.1, (2, views, 4))
    return Cameras(c2w.astype(np.float32), fxfycxcy.astype(np.float32))


def tokens(seed, views):
    return jax.random.normal(jax.random.key(seed), (2, views, TOKENS, HEADS, HEAD_DIM))


def positions(some, encoding="prope"):
    return prope.view_positions(encoding, some, HEIGHT, WIDTH, PATCH, HEAD_DIM)


def attend(q, k, v):
    """Softmax attention of all tokens to all, `[b, i, m, c]`."""
    logits = jnp.einsum("bimc,bjmc->bmij", q, k) / np.sqrt(HEAD_DIM)
    return jnp.einsum("bmij,bjmc->bimc", jax.nn.softmax(logits), v)


def flat(x):
    return x.reshape(2, -1, HEADS, HEAD_DIM)


def ours(q, k, v, targets, inputs):
    read = attend(flat(targets.to_queries(q)), flat(inputs.to_keys(k)), flat(inputs.to_keys(v)))
    return targets.to_outputs(read.reshape(q.shape))


def matrices(some, encoding):
    """`D` of every token, `[b, v*n, c, c]`, as the paper writes it."""
    result = np.zeros((2, some.shape[1], TOKENS, HEAD_DIM, HEAD_DIM))
    for b, v, n in np.ndindex(result.shape[:3]):
        projection = np.linalg.inv(np.float64(some.c2w[b, v]))
        if encoding == "prope":
            fx, fy, cx, cy = some.fxfycxcy[b, v] / np.array([WIDTH, HEIGHT] * 2)
            k = np.eye(4)
            k[:3, :3] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
            projection = k @ projection
        d, half, eighth = result[b, v, n], HEAD_DIM // 2, HEAD_DIM // 8
        d[:half, :half] = np.kron(np.eye(eighth), projection)
        for axis, place in enumerate((n % (WIDTH // PATCH), n // (WIDTH // PATCH))):
            for f in range(eighth):
                angle = place * 100.0 ** (-f / eighth)
                one = half + axis * 2 * eighth + f
                pair = [one, one + eighth]
                turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
                d[np.ix_(pair, pair)] = turn
    return result.reshape(2, -1, HEAD_DIM, HEAD_DIM)


def test_gradients_are_those_of_the_plain_transform():
    """With respect to tokens, cameras and places."""
    some = positions(cameras(0, views=3))
    arguments = tokens(1, views=3), some.projection, some.cos, some.sin
    weights = tokens(2, views=3)
    ours, plain = (jax.vjp(turn, *arguments)[1](weights) for turn in (prope._apply, prope._turned))
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoding", ["prope", "gta"])
def test_the_formula_written_out(encoding):
    targets, inputs = cameras(0, 2), cameras(1, 3)
    q, k, v = tokens(0, 2), tokens(1, 3), tokens(2, 3)
    d_i, d_j = matrices(targets, encoding), matrices(inputs, encoding)
    inverse = np.linalg.inv(d_j)
    expected = np.einsum(
        "bicd,bimd->bimc",
        d_i,
        attend(
            np.einsum("bidc,bimd->bimc", d_i, flat(q)),
            np.einsum("bjcd,bjmd->bjmc", inverse, flat(k)),
            np.einsum("bjcd,bjmd->bjmc", inverse, flat(v)),
        ),
    )
    result = ours(q, k, v, positions(targets, encoding), positions(inputs, encoding))
    np.testing.assert_allclose(flat(result), expected, atol=1e-4)


@pytest.mark.parametrize("encoding", ["prope", "gta"])
def test_the_world_frame_does_not_matter(encoding):
    motion = np.eye(4, dtype=np.float32)
    motion[:3, :3] = Rotation.from_euler("xyz", [0.3, -1.2, 2.0]).as_matrix()
    motion[:3, 3] = [0.5, -0.7, 0.2]

    def result(move):
        moved = [Cameras(move @ some.c2w, some.fxfycxcy) for some in (cameras(0, 2), cameras(1, 3))]
        return ours(tokens(0, 2), tokens(1, 3), tokens(2, 3), *map(positions, moved))

    np.testing.assert_allclose(
        result(motion), result(np.eye(4, dtype=np.float32)), atol=1e-4, rtol=1e-4
    )


def test_a_models_attention_is_the_formula_written_out():
    """With its projections and norms: keys and values once, then queries of any targets."""
    config = lvsm_jax.EfficientLVSMConfig(width=HEADS * HEAD_DIM, head_dim=HEAD_DIM)
    layer = Attention(config, init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0))
    targets, inputs = cameras(0, 2), cameras(1, 3)
    x, y = (jax.random.normal(jax.random.key(i), (2, n, TOKENS, 32)) for i, n in ((0, 2), (1, 3)))
    kv = layer.keys_values(y)
    d_i, d_j = matrices(targets, "prope"), matrices(inputs, "prope")
    inverse = np.linalg.inv(d_j)

    def dense(q):
        read = attend(
            np.einsum("bidc,bimd->bimc", d_i, flat(q)),
            np.einsum("bjcd,bjmd->bjmc", inverse, flat(kv.k)),
            np.einsum("bjcd,bjmd->bjmc", inverse, flat(kv.v)),
        )
        return jnp.asarray(np.einsum("bicd,bimd->bimc", d_i, read).reshape(q.shape))

    queries, moved = layer.queries(x, positions(targets)), layer.keys_values(y, positions(inputs))
    attended = attend(flat(queries), flat(moved.k), flat(moved.v)).reshape(queries.shape)
    ours = layer.outputs(attended, positions(targets))
    expected = layer.outputs(dense(layer.queries(x)))
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_inside_one_view_the_camera_cancels():
    some = cameras(0, 1)
    q, k, v = (tokens(seed, 1) for seed in range(3))
    patches = positions(some).inside
    expected = ours(q, k, v, patches, patches)
    np.testing.assert_allclose(
        ours(q, k, v, positions(some), positions(some)), expected, atol=1e-4, rtol=1e-4
    )
    assert np.abs(expected - flat(attend(*map(flat, (q, k, v)))).reshape(q.shape)).max() > 0.01


@pytest.mark.parametrize("focal", [0.2, 2e3, 2e5])
def test_gradients_are_finite_for_extreme_focal_lengths(focal):
    def loss(c2w, fxfycxcy):
        some = positions(Cameras(c2w, fxfycxcy))
        x = tokens(0, 2)
        return jnp.square(ours(x, x, x, some, some)).mean()

    some = cameras(0, 2, focal)
    gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(some.c2w), jnp.asarray(some.fxfycxcy))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention needs an NVIDIA GPU")
@pytest.mark.parametrize("encoding", ["prope", "plucker_prope", "gta"])
def test_cudnn_in_bfloat16_does_as_exact_attention(encoding):
    sizes = {"num_layers": 2, "width": 128, "head_dim": 64, "camera_encoding": encoding}
    images = jax.random.uniform(jax.random.key(0), (2, 3, HEIGHT, WIDTH, 3))
    views = images, cameras(0, 3), cameras(1, 2)

    def render(blind=False, **how):
        model = lvsm_jax.EfficientLVSM(
            lvsm_jax.EfficientLVSMConfig(**sizes, **how), rngs=nnx.Rngs(0)
        )
        larger = {n: a * 10 if "decoder" in n else a for n, a in named_leaves(model).items()}
        model = from_named(model, larger)  # so that what it reads counts
        if blind:
            model.positions = lambda *_: None
        return np.float32(jax.jit(lambda *views: model(*views))(*views))

    exact = render()
    error = np.abs(render(dtype="bfloat16", attention="cudnn") - exact).mean()
    assert error < 0.1 * np.abs(render(blind=True) - exact).mean()
