"""Photographs to picture: what a camera halfway between two photographs sees.

python examples/photos_to_picture.py SCENE OUT.png            the weights of the package
python examples/photos_to_picture.py EXPORT SCENE OUT.png     others
"""

import sys

from PIL import Image

import lvsm_jax
from lvsm_jax.scenes import trajectories
from lvsm_jax.scenes.readers import read_scene

*export, folder, out = sys.argv[1:]
scene = read_scene(folder)  # cameras.json, transforms.json or a COLMAP model
photographs = [photograph.load() for photograph in scene.photographs[:4]]
cameras = [photograph.camera for photograph in photographs[:2]]
halfway = trajectories.interpolate(cameras, frames=3)[1]

model = lvsm_jax.load(*export)  # 64: as `make demo` trains it; the published models have 256
with lvsm_jax.Session(model, image_height=64, max_views=len(photographs)) as session:
    session.add(photographs)  # each is encoded once, its keys and values stay in the cache
    Image.fromarray(session.render(halfway)).save(out)
