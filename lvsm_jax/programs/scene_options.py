"""What programs that render a scene ask about it alike."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lvsm_jax.common.command_line import path
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.text import printable

if TYPE_CHECKING:
    from lvsm_jax.common.colours import Colour
    from lvsm_jax.scenes.readers import Scene, ScenePhotograph
    from lvsm_jax.scenes.scene_frame import SceneFrame

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
    """The export to render with; where nobody names one the shipped one.

    UserError for two exports, or an export in the place of the scene.
    """
    if given.export and given.weights:
        raise UserError(f"two exports, {given.export} and --weights={given.weights}: give one")
    scene = pathlib.Path(given.scene or "")
    if given.scene and (scene / "config.json").is_file() and (scene / "weights").is_dir():
        raise UserError(f"{scene} is an export, no scene: give a scene, and --weights={scene}")
    if export := given.export or given.weights:
        return export
    from lvsm_jax.weights.shipped import SHIPPED

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


def frame_of(description: Mapping[str, Any], scale: float | None) -> "SceneFrame | None":
    """The world itself, in `scale` units of the model, for an export trained in an object's frame.

    None for others, whose frame the inputs define.
    """
    from lvsm_jax.weights.shipped import training_data

    if training_data(description).get("camera_normalization") != "none":
        return None
    import numpy as np

    from lvsm_jax.scenes.scene_frame import SceneFrame

    return SceneFrame(np.eye(4), 1.0 if scale is None else scale)


def add_background_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--background`, which `background_of` reads."""
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="of transparent pixels: white, black, grey, #rrggbb or r,g,b (refused)",
    )


def background_of(given: argparse.Namespace) -> "Colour | None":
    """The colour of `--background`; UserError for what is none."""
    from lvsm_jax.common.colours import colour_of

    try:
        return None if given.background is None else colour_of(given.background)
    except UserError as error:
        raise UserError(f"--background: {error}") from None


def open_posed(given: argparse.Namespace, background: "Colour | None") -> "Scene":
    """The scene of the command line, also where it has no cameras: then they are found first.

    They are kept beside the photographs, and used again as long as these are the same. What is
    found, and what the scene leaves out, is told in lines. Errors are those of `open_scene` and
    `find_poses`.
    """
    from input_pipeline.clip_scene import open_scene  # only now, so that --help comes at once
    from lvsm_jax.scenes.readers import NoCamerasError

    try:
        scene = open_scene(given.scene, images=given.images, background=background)
    except NoCamerasError as nothing:
        if given.images is not None:
            raise
        scene = open_scene(_find_poses(nothing.photographs, background))
    for note in scene.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    return scene


def _find_poses(photographs: pathlib.Path, background: "Colour | None") -> pathlib.Path:
    from lvsm_jax.poses import find_poses, output_of
    from lvsm_jax.programs.progress import bars

    if not output_of(photographs).exists():
        print(f"{photographs} has no cameras: they are found first, by lvsm poses", flush=True)
    with bars() as progress:
        found = find_poses(photographs, background=background, progress=progress)
    for note in found.notes:
        print(printable(note))
    if found.left_out:
        names = printable(", ".join(found.left_out))
        print(f"note: without a place are {names}", file=sys.stderr)
    kept = "found before, of these photographs" if found.reused else "kept"
    print(f"cameras {kept}: {found.folder}; are they right? {found.page}", flush=True)
    return found.folder


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


def split_photographs(
    scene: "Scene", inputs: str | None, count: int
) -> tuple[list["ScenePhotograph"], list["ScenePhotograph"]]:
    """Inputs as `choose_inputs` has them, and `count` photographs that are none of them.

    These are evenly spaced. Unless the inputs are named they are taken out first, and inputs are
    chosen from what is left. UserError where there are not so many.
    """
    if count == 0:
        return choose_inputs(scene, inputs), []
    named = inputs is not None and inputs != "all" and not inputs.isdecimal()
    chosen = choose_inputs(scene, inputs) if named else []
    taken = {photograph.name for photograph in chosen}
    there = [photograph for photograph in scene.photographs if photograph.name not in taken]
    most = len(there) if named else len(there) - 1
    if most < 1:
        found = f"{scene.source} has {len(scene.photographs)} photographs"
        raise UserError(f"--hold-out={count}, but {found}, and all of them are inputs")
    if not 1 <= count <= most:
        raise UserError(
            f"--hold-out={count}, expected 1 to {most}: {scene.source} has "
            f"{len(scene.photographs)} photographs, of which some are inputs"
        )
    import numpy as np  # only now, so that --help comes at once

    places = np.linspace(0, len(there) - 1, count + 2).round().astype(int)[1:-1]
    for i in range(1, count):  # so many that some fall together
        places[i] = max(places[i], places[i - 1] + 1)
    places = np.minimum(places, len(there) - count + np.arange(count))
    held_out = [there[i] for i in places]
    if not named:
        rest = [photograph for i, photograph in enumerate(there) if i not in places]
        chosen = choose_inputs(dataclasses.replace(scene, photographs=rest), inputs)
    return chosen, held_out


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
