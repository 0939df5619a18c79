"""What programs that render a scene ask about it alike."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lvsm_jax.common.command_line import path
from lvsm_jax.common.errors import UserError

if TYPE_CHECKING:
    from lvsm_jax.scenes.readers import Scene, ScenePhotograph

INPUTS = 4  # where nobody says how many


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--weights=EXPORT`, and EXPORT as the first of the arguments without a name."""
    parser.add_argument(
        "export", metavar="EXPORT", nargs="?", type=path, help="another way to say --weights=EXPORT"
    )
    parser.add_argument(
        "--weights",
        type=path,
        metavar="EXPORT",
        help="of the model (those that come with lvsm_jax)",
    )


def choose_weights(given: argparse.Namespace) -> str:
    """The export to render with; where nobody names one the shipped one, and a line says which.

    UserError for two exports, or an export in the place of the scene.
    """
    if given.export and given.weights:
        raise UserError(f"two exports, {given.export} and --weights={given.weights}: give one")
    scene = pathlib.Path(given.scene or "")
    if given.scene and (scene / "config.json").is_file() and (scene / "weights").is_dir():
        raise UserError(f"{scene} is an export, no scene: give a scene, and --weights={scene}")
    if export := given.export or given.weights:
        return export
    from lvsm_jax.weights.shipped import SHIPPED, shipped_weights

    print(f"weights: {shipped_weights()}")
    return str(SHIPPED)


def add_scene_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--images`, `--size` and `--scale`."""
    parser.add_argument(
        "--images", type=path, metavar="FOLDER", help="of the images, if not that of the cameras"
    )
    parser.add_argument(
        "--size",
        metavar="H|WxH",
        help="pixels of inputs and renders, multiples of the patch (as the model was trained)",
    )
    parser.add_argument(
        "--scale",
        type=float,
        help="units of the model a unit of the poses, useful with one input (fitted to the inputs)",
    )


def choose_inputs(scene: "Scene", wanted: str | None) -> list["ScenePhotograph"]:
    """Photographs of a scene to render from.

    `wanted` is a number of them, evenly spaced in their order from first to last (one: the middle),
    or `all`, or names with commas between; None: 4, or all where there are fewer. Raises UserError
    for more than there are, none, or an unknown name.
    """
    import numpy as np  # only now, so that --help comes at once

    there = scene.photographs
    if wanted is None:
        wanted = str(min(INPUTS, len(there)))
    if wanted == "all":
        return list(there)
    if not wanted.isdecimal():
        names = wanted.split(",")
        if len(set(names)) < len(names):
            raise UserError(f"--inputs={wanted} names a photograph twice")
        return [scene[name] for name in names]
    count = int(wanted)
    if not 1 <= count <= len(there):
        raise UserError(f"--inputs={count}, but {scene.source} has {len(there)} photographs")
    if count == 1:
        return [there[len(there) // 2]]
    return [there[round(i)] for i in np.linspace(0, len(there) - 1, count)]


def picture_size(given: str | None, description: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of inputs and renders, in pixels.

    `given` is `--size`, that is `HEIGHT` of a square or `WIDTHxHEIGHT`; by default as in training,
    which the export's `description` says. Raises UserError for what is no size, or none to be had.
    """
    if given is None:
        data = (description.get("config") or {}).get("data", {})
        if not data.get("square_crop", True):
            raise UserError("the model was trained on pictures of full width: give --size=WxH")
        height = data.get("image_height", 256)
        return height, height
    width, cross, height = given.lower().partition("x")
    if not width.isdecimal() or not (height.isdecimal() if cross else True):
        raise UserError(f"--size={given}, expected HEIGHT or WIDTHxHEIGHT in pixels")
    return int(height or width), int(width)
