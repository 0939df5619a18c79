"""Scenes of COLMAP models, text or binary, by pycolmap."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvsm_jax.scenes.lens import Distortion
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.colmap_files import check_whole
from lvsm_jax.scenes.readers.scene import Scene, SceneError

_SECONDS, _BYTES_A_SECOND = 20, 2e6  # after which the reader of a damaged model is ended
_IMAGES = ("images", "images_2", "images_4", "images_8")
_PLACES = ("", "sparse", "sparse/*", "colmap/sparse/*")  # where COLMAP and its users put models


def read_colmap(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads the model in a folder, in its `sparse/0` or the like."""
    models = _models(path)
    if not models:
        return None
    if len(models) > 1:
        raise SceneError(f"several COLMAP models: name one of {scene.some_of(map(str, models))}")
    folder = models[0]
    model = _read_model(folder)
    root = images or _images_folder(folder)
    posed = []
    for image in model["images"]:
        name, entry = image["file"], model["cameras"].get(str(image["camera"]))
        where = f"{folder}: image {name!r}"
        if entry is None:
            raise SceneError(f"{where} is of camera {image['camera']}, which is not there")
        file = scene.find_image(root, name, where)
        if image["w2c"] is None:
            continue  # its file, if there is one, is noted as one without a pose
        fxfycxcy, distortion = _lens(entry, f"{folder}: camera {image['camera']}")
        with scene.naming(where):
            camera = PosedCamera.from_w2c(image["w2c"], fxfycxcy, entry["w"], entry["h"])
        posed.append(scene.posed_image(name, file, camera, where, distortion))
    return scene.make_scene(folder, root, posed, root.rglob("*"), by_name=True)


def _models(folder: pathlib.Path) -> list[pathlib.Path]:
    for place in _PLACES:
        candidates = sorted(folder.glob(place)) if place else [folder]
        files = {path: (path / "images.bin", path / "images.txt") for path in candidates}
        if models := [path for path in candidates if any(f.is_file() for f in files[path])]:
            return models
    return []


def _read_model(folder: pathlib.Path) -> dict[str, Any]:
    if importlib.util.find_spec("pycolmap") is None:
        raise SceneError(
            f"{folder} is a COLMAP model, and reading it needs pycolmap: "
            "pip install 'lvsm_jax[colmap]'"
        )
    check_whole(folder)
    program = pathlib.Path(__file__).with_name("colmap_model.py")
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    timeout = _SECONDS + num_bytes / _BYTES_A_SECOND
    # -P: this package's modules must not stand in for others of the same name.
    command = [sys.executable, "-P", os.fspath(program), os.fspath(folder.resolve())]
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=nothing, capture_output=True, text=True, check=False, timeout=timeout
        )
        if not done.returncode:
            return json.loads(done.stdout)
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode == 1 else "its reader broke down"
    except subprocess.TimeoutExpired:
        reason = f"its reader did not end in {timeout:.0f} s"
    raise SceneError(f"{folder}: no COLMAP model that can be read: {reason}")


def _images_folder(folder: pathlib.Path) -> pathlib.Path:
    folder = folder.resolve()
    for above in (folder, *folder.parents[:3]):
        for name in _IMAGES:
            if (above / name).is_dir():
                return above / name
    raise SceneError(
        f"{folder}: no folder 'images' there or up to three folders above: say where the images are"
    )


def _lens(entry: Mapping[str, Any], where: str) -> tuple[Float64[np.ndarray, "4"], Distortion]:
    """Intrinsics, and what the lens distorts."""
    if entry["model"] not in scene.LENSES:
        raise SceneError(f"{where}: its model is {entry['model']}, expected one of {scene.LENSES}")
    parameters = dict(entry["parameters"])
    f = parameters.pop("f", None)
    fx, fy = parameters.pop("fx", f), parameters.pop("fy", f)
    cx, cy = parameters.pop("cx"), parameters.pop("cy")
    with scene.naming(where):
        return np.array([fx, fy, cx, cy]), Distortion.of(entry["model"], parameters)
