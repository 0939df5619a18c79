"""A tiny scene and a tiny model for tests of the viewer."""

import contextlib
import io
import json
import pathlib
import zipfile

import numpy as np
from flax import nnx
from PIL import Image

import lvsm_jax
from lvsm_jax import PosedCamera, Session
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.scenes.readers import read_scene
from lvsm_jax.viewer.gallery import Gallery

SIZE = (32, 32)
INPUTS = 3
MAX_VIEWS = 4
WIDTH, HEIGHT = 60, 40


def make_model():
    """Random, but its renders depend on inputs and cameras enough to see it."""
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=32, head_dim=16)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    factors = {"decoder": 10, "input_tokenizer": 10, "target_tokenizer": 10, "head": 5}
    leaves = named_leaves(model).items()
    return from_named(model, {name: a * factors.get(name.split(".")[0], 1) for name, a in leaves})


def make_gaussian_model():
    """Random, but its Gaussians are where the scene's cameras look, in their pixels' colours."""
    config = lvsm_jax.GSLRMConfig(
        num_layers=1,
        width=32,
        head_dim=16,
        near=1.0,
        far=30.0,
        distance_space="inverse",
        distance_bias=1.0,
        scale_unit="pixel",
        scale_bias=-0.5,
        max_scale=2.0,
        residual_colors=True,
        opacity_bias=2.0,
        tile_size=8,
        pairs_per_gaussian=8.0,
    )
    return lvsm_jax.GSLRM(config, rngs=nnx.Rngs(0))


def pose(number: int) -> np.ndarray:
    """Cameras on an arc that look at one point, in a world of large numbers whose up is -y."""
    angle = 0.15 * (number - 3)
    c2w = np.eye(4)
    c2w[:3, :3] = [
        [np.cos(angle), 0, -np.sin(angle)],
        [0, 1, 0],
        [np.sin(angle), 0, np.cos(angle)],
    ]
    c2w[:3, 3] = np.array([1000.0, 50.0, -200.0]) - 8 * c2w[:3, 2]
    return c2w


def picture(number: int) -> bytes:
    """A smooth PNG."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    file = io.BytesIO()
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def entry(number: int, name: str) -> dict:
    """What cameras.json says of a photograph."""
    fxfycxcy = [50.0, 50.0, WIDTH / 2, HEIGHT / 2]
    size = {"w": WIDTH, "h": HEIGHT, "fxfycxcy": fxfycxcy}
    return {"file": name, **size, "c2w": pose(number).tolist()}


def poses_json(names: dict[str, int]) -> bytes:
    return json.dumps({"frames": [entry(number, name) for name, number in names.items()]}).encode()


def write_scene(folder: pathlib.Path, count: int = 6) -> pathlib.Path:
    names = {f"{i}.png": i for i in range(count)}
    for name, number in names.items():
        (folder / name).write_bytes(picture(number))
    (folder / "cameras.json").write_bytes(poses_json(names))
    return folder


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as result:
        for name, content in members.items():
            result.writestr(name, content)
    return file.getvalue()


def open_gallery(model, folder: pathlib.Path) -> tuple[Session, Gallery]:
    """Three of the scene's photographs are in use, and there is room for one more."""
    photographs = read_scene(folder).photographs
    session = Session(model, image_height=SIZE[0], max_views=MAX_VIEWS)
    session.add([photograph.load() for photograph in photographs[:INPUTS]])
    return session, Gallery(session, photographs, SIZE, MAX_VIEWS)


@contextlib.contextmanager
def open_viewer(folder: pathlib.Path, model=None, **options):
    """A viewer of the scene, written there; its session and gallery are for tests to see."""
    from lvsm_jax.viewer import geometry
    from lvsm_jax.viewer.server import Viewer  # needs viser
    from lvsm_jax.viewer.uploads import Limits

    session, gallery = open_gallery(model or make_model(), write_scene(folder))
    sizes, limits = (geometry.coarse_size(SIZE, 8), SIZE), Limits(bytes=2**20)
    with session:
        start = gallery.listing()[1].camera
        options |= {"sizes": sizes, "start": start, "port": 0, "limits": limits}
        viewer = Viewer(session, gallery, **options)
        viewer.session, viewer.gallery = session, gallery
        yield viewer
        viewer.close()


def camera(number: int) -> PosedCamera:
    return PosedCamera(pose(number), (50.0, 50.0, WIDTH / 2, HEIGHT / 2), WIDTH, HEIGHT)
