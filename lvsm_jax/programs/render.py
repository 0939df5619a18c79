"""Renders a camera path through a scene of photographs: PNGs and a video.

    python -m lvsm_jax.programs.render EXPORT SCENE OUT
    python -m lvsm_jax.programs.render runs/quickstart/export photos/ out/ --path=spiral --inputs=8
    python -m lvsm_jax.programs.render EXPORT data/re10k/test:6b658b1d8562dc85 out/ --frames=60

EXPORT is a directory that train.py or lvsm_jax.export wrote, of an EfficientLVSM.

SCENE is a folder with cameras.json, with nerfstudio's transforms.json or with a COLMAP model (text
or binary, also in sparse/0; needs pip install 'lvsm_jax[colmap]'), one of these JSON files, or a
clip of a dataset directory, DATASET/SPLIT:KEY. Cameras must be pinholes: undistort first.

The path is made from the cameras of the inputs (--inputs), which are all that the model sees:

    interpolate   smoothly through the inputs, in their order
    orbit         around the point that the inputs look at
    spiral        circles of the middle input, while it moves ahead and back
    dolly         straight ahead from behind the middle input
    FILE          the cameras of a file {"frames": [{"w", "h", "fxfycxcy", "c2w" or "w2c"}]},
                  such as another render's path.json, or a cameras.json

Lengths are in the unit of the scene's poses. OUT gets frame_00000.png and so on, video.mp4 (needs
pip install 'lvsm_jax[video]'), path.json with the cameras, and render.json, which says what was
rendered. Stop it at any time: the same command goes on where it stopped.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from input_pipeline.clip_scene import open_scene
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.scenes import camera_json, trajectories
from lvsm_jax.scenes.photograph import Photograph, PosedCamera
from lvsm_jax.scenes.readers import Scene, ScenePhotograph

PATHS = {
    "interpolate": (trajectories.interpolate, ("closed",)),
    "orbit": (trajectories.orbit, ("degrees", "distance")),
    "spiral": (trajectories.spiral, ("turns", "radius", "distance")),
    "dolly": (trajectories.dolly, ("travel",)),
}
_OPTIONS = sorted({option for _, options in PATHS.values() for option in options})
INPUTS = 4  # where nobody says how many
_FRAMES = 120
_VIDEO = "video.mp4"
_RECORD = "render.json"
_ALL_FRAMES = "frame_*.png"


def choose_inputs(scene: Scene, wanted: str | None) -> list[ScenePhotograph]:
    """Photographs of a scene to render from.

    Args:
        scene: to choose from.
        wanted: a number of them, evenly spaced in their order from first to last (one: the middle),
            or `all`, or names with commas between; None: 4, or all where there are fewer.

    Raises:
        ValueError: more than there are, none, or a name that there is not.
    """
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


def make_path(
    kind: str,
    cameras: Sequence[PosedCamera],
    frames: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[PosedCamera]:
    """The cameras to render.

    Args:
        kind: a name of `PATHS`, or a file of cameras.
        cameras: of the inputs.
        frames: cameras of the path (120); a file has as many as it has.
        options: of the function of that name.

    Raises:
        ValueError: an option that this path does not have, or a path that cannot be.
    """
    function, allowed = PATHS.get(kind, (None, ()))
    if function is None and not os.path.isfile(kind):
        raise UserError(f"--path={kind}: no such file, nor one of {', '.join(PATHS)}")
    given = dict(options or {}) | ({} if function or frames is None else {"frames": frames})
    if wrong := sorted(given.keys() - set(allowed)):
        raise UserError(f"--{wrong[0]} does not go with --path={kind}")
    if function is None:
        return camera_json.read_camera_path(kind)
    return function(cameras, _FRAMES if frames is None else frames, **given)


def save_frames(
    renders: Iterable[UInt8[np.ndarray, "h w 3"]], files: Sequence[pathlib.Path], total: int
) -> None:
    """Writes renders to PNG files one by one, and shows how far it is of so many in total."""
    with tqdm(total=total, initial=total - len(files), unit="frame") as progress:
        for file, pixels in zip(files, renders, strict=True):
            with atomic_write(file) as local:
                Image.fromarray(pixels).save(local, format="PNG")
            progress.update()


def write_video(folder: pathlib.Path, count: int, fps: float) -> pathlib.Path:
    """Makes an H.264 MP4 that browsers play of the frames in a folder; odd sizes get a black edge.

    Raises:
        ModuleNotFoundError: imageio-ffmpeg is not installed.
        OSError: ffmpeg failed; says how.
    """
    import imageio_ffmpeg

    file = folder / _VIDEO
    with atomic_write(file.absolute()) as local:
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
            *("-framerate", str(fps), "-i", "frame_%05d.png", "-frames:v", str(count)),
            *("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709"),
            *("-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-colorspace", "bt709"),
            *("-movflags", "+faststart", "-f", "mp4", local),
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(f"ffmpeg could not write {file}: {done.stderr.strip()[-300:]}")
    return file


def check_folder(folder: pathlib.Path, record: Mapping[str, Any], overwrite: bool) -> None:
    """Raises FileExistsError unless the frames of a record may be written to a folder.

    They may if it is new or empty, has frames of that record, or frames that are to be overwritten.
    """
    file = folder / _RECORD
    if not folder.exists():
        return
    if not folder.is_dir() or (not file.exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else, no {_RECORD}: choose another folder")
    there = _read_record(file)
    if any(folder.glob(_ALL_FRAMES)) and not overwrite and there != record:
        other = sorted(key for key in record if there.get(key) != record[key])
        raise FileExistsError(
            f"{folder} has frames of another command (other {', '.join(other)}): choose another "
            "folder, or --overwrite them"
        )


def take_folder(folder: pathlib.Path, record: Mapping[str, Any], overwrite: bool) -> None:
    """Makes a folder that `check_folder` allowed ready; frames of the record stay there."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite or _read_record(folder / _RECORD) != record:
        for old in (*folder.glob(_ALL_FRAMES), folder / _VIDEO):
            old.unlink(missing_ok=True)
    write_text(folder / _RECORD, json.dumps(record, indent=1) + "\n")


def _read_record(file: pathlib.Path) -> dict[str, Any]:
    try:
        return camera_json.read_json(file)
    except (ValueError, FileNotFoundError):
        return {}


def _digest(*parts: Any) -> str:
    """Tells contents apart: arrays, and what JSON can hold."""
    result = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode()
        result.update(f"{len(data)} ".encode() + data)
    return result.hexdigest()[:16]


def _export_digest(export: str) -> str:
    """Changes when another export is put in its place."""
    folder = epath.Path(export)
    files = [folder / "config.json", *sorted((folder / "weights").glob("_*"))]  # with dates
    return _digest(*(file.read_text() for file in files))


def _record(
    given: argparse.Namespace,
    photographs: Sequence[Photograph],
    cameras: Sequence[PosedCamera],
    size: tuple[int, int],
) -> dict[str, Any]:
    """What the frames depend on. The speed of the video is none of it."""
    return {
        "export": _export_digest(given.export),
        "scene": given.scene,
        "inputs": {
            photograph.name: _digest(photograph.pixels, camera_json.as_json([photograph.camera]))
            for photograph in photographs
        },
        "path": given.path,
        "frames": len(cameras),
        "cameras": _digest(camera_json.as_json(cameras)),
        "height": size[0],
        "width": size[1],
        "scale": given.scale,
    }


def run(given: argparse.Namespace) -> str:
    """Renders as the command line asks, and returns what to tell at the end.

    Raises:
        ValueError, OSError: what is wrong, before anything is rendered.
    """
    if not (given.fps > 0 and np.isfinite(given.fps)):
        raise UserError(f"--fps={given.fps}, expected a positive number")
    if given.video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(
            "a video needs imageio-ffmpeg: pip install 'lvsm_jax[video]', or give --no-video"
        )
    scene = open_scene(given.scene, images=given.images)
    for note in scene.notes:
        print(f"note: {note}", file=sys.stderr)
    inputs = choose_inputs(scene, given.inputs)
    options = {name: getattr(given, name) for name in _OPTIONS if getattr(given, name) is not None}
    cameras = make_path(given.path, [chosen.camera for chosen in inputs], given.frames, options)

    from lvsm_jax.rendering.session import Session
    from lvsm_jax.weights import exports  # imports JAX and Orbax, which takes seconds

    height, width = picture_size(given.size, exports.describe(given.export))
    photographs = [chosen.load() for chosen in inputs]
    folder = pathlib.Path(given.out)
    record = _record(given, photographs, cameras, (height, width))
    print(
        f"{len(inputs)} of {len(scene.photographs)} photographs of {scene.source}: "
        f"{', '.join(chosen.name for chosen in inputs)}\n"
        f"{len(cameras)} frames of {width}×{height} pixels along {given.path}"
    )
    check_folder(folder, record, given.overwrite)
    session = Session(
        exports.load(given.export),
        image_height=height,
        image_width=width,
        max_views=len(inputs),
        scale=given.scale,
    )
    with session:
        session.add(photographs)
        take_folder(folder, record, given.overwrite)
        camera_json.write_camera_path(folder / "path.json", cameras)
        files = {folder / f"frame_{i:05d}.png": camera for i, camera in enumerate(cameras)}
        missing = {file: camera for file, camera in files.items() if not file.exists()}
        renders = session.render_path(list(missing.values()), height=height, width=width)
        save_frames(renders, list(missing), len(files))
    if not given.video:
        return f"wrote {len(cameras)} frames to {folder}"
    return f"wrote {len(cameras)} frames and {write_video(folder, len(cameras), given.fps)}"


def picture_size(given: str | None, description: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of inputs and renders.

    Args:
        given: `--size`, that is `HEIGHT` of a square or `WIDTHxHEIGHT`; by default as in training.
        description: of the export, see `checkpoint.describe`.

    Raises:
        ValueError: a size that is none, or none given where training says none.
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and renders."""
    given = _parser().parse_args(arguments)
    try:
        print(run(given))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")


def add_scene_options(parser: argparse.ArgumentParser) -> None:
    """Adds what programs that render a scene ask about it alike."""
    parser.add_argument(
        "--images", metavar="FOLDER", help="where the images are, if not where the cameras are"
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.programs.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("export", metavar="EXPORT", help="directory of an export")
    parser.add_argument("scene", metavar="SCENE", help="photographs with their cameras")
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--inputs",
        metavar="N|NAMES",
        help=f"so many photographs, evenly spaced ({INPUTS}), or all, or names with commas between",
    )
    parser.add_argument(
        "--path", default="interpolate", help=f"{', '.join(PATHS)}, or a file (interpolate)"
    )
    parser.add_argument("--frames", type=int, help=f"number of frames ({_FRAMES})")
    parser.add_argument("--fps", type=float, default=30.0, help="frames a second of the video (30)")
    add_scene_options(parser)
    of_paths = parser.add_argument_group("options of paths")
    of_paths.add_argument(
        "--closed", action="store_true", default=None, help="interpolate: back to the first input"
    )
    of_paths.add_argument(
        "--degrees", type=float, help="orbit: how far, positive to the right (360)"
    )
    of_paths.add_argument("--turns", type=float, help="spiral: number of circles (2)")
    of_paths.add_argument(
        "--radius", type=float, help="spiral: of the circles (¼ of the inputs' distance from mean)"
    )
    of_paths.add_argument(
        "--distance", type=float, help="orbit, spiral: from the middle input to what it looks at"
    )
    of_paths.add_argument(
        "--travel", type=float, help="dolly: how far (twice the inputs' distance from their mean)"
    )
    parser.add_argument("--no-video", dest="video", action="store_false", help="write frames alone")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the frames of another command in OUT"
    )
    return parser


if __name__ == "__main__":
    main()
