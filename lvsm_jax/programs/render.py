"""Renders a camera path through a scene of photographs: PNGs and a video.

    lvsm render SCENE OUT
    lvsm render photos/ out/ --path=spiral --inputs=8 --weights=runs/quickstart/export
    lvsm render data/re10k/test:6b658b1d8562dc85 out/ --frames=60

The weights are those that come with lvsm_jax, or with --weights=EXPORT those of a directory that
`lvsm train`, `convert` or `export` wrote, of an EfficientLVSM or a GSLRM;
`lvsm render EXPORT SCENE OUT` says the same. With --ply=FILE a GSLRM's Gaussians are written, in
the world of SCENE, as viewers of 3D Gaussian splats read them.

SCENE is a folder with cameras.json, with a COLMAP model (text or binary, also in sparse/0; needs
pip install 'lvsm_jax[colmap]') or with what nerfstudio, Blender, LLFF, Gaussian splatting, Polycam
or Record3D write; one of their files; or a clip of a dataset directory, DATASET/SPLIT:KEY. Lenses
that distort are undone, fisheyes refused. Of a folder of photographs without cameras, or a video,
they are found first, as `lvsm poses` does, and kept beside it.

The path is made from the cameras of the inputs (--inputs), which are all that the model sees:

    interpolate   smoothly through the inputs, in their order
    orbit         around the point that the inputs look at
    spiral        circles of the middle input, while it moves ahead and back
    dolly         straight ahead from behind the middle input
    FILE          the cameras of a file {"frames": [{"w", "h", "fxfycxcy", "c2w" or "w2c"}]},
                  such as another render's path.json, or a cameras.json

With --hold-out=N, so many photographs are kept from the inputs and rendered at their cameras: OUT
gets held_out.csv with their scores, beside those of copying the nearest input, and a picture of
each: photograph, render, nearest input.

Lengths are in the unit of the scene's poses. OUT gets frame_00000.png and so on, video.mp4 (needs
pip install 'lvsm_jax[video]'), path.json with the cameras, and render.json, which says what was
rendered. Stop it at any time: the same command goes on where it stopped.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import check_new_file, check_parent, check_writable
from lvsm_jax.common.text import printable
from lvsm_jax.programs.scene_options import (
    INPUTS,
    add_background_option,
    add_scene_options,
    add_weights_options,
    background_of,
    choose_weights,
    frame_of,
    open_posed,
    picture_size,
    split_photographs,
)

if TYPE_CHECKING:
    from lvsm_jax.rendering.session import Session
    from lvsm_jax.scenes.photograph import Photograph, PosedCamera
    from lvsm_jax.scenes.scene_frame import SceneFrame

_WATCHED = 512  # pixels of the shorter side of a video that people watch

# The options of paths, see `lvsm_jax.scenes.trajectories`.
_OPTIONS = {
    "closed": "interpolate: back to the first input",
    "degrees": "orbit: how far, positive to the right (360)",
    "turns": "spiral: number of circles (2)",
    "radius": "spiral: of the circles (¼ of the inputs' distance from mean)",
    "distance": "orbit, spiral: from the middle input to what it looks at",
    "travel": "dolly: how far (twice the inputs' distance from their mean)",
}


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and renders."""
    parser = argument_parser("render", __doc__)
    add_weights_options(parser)
    parser.add_argument("scene", type=path, metavar="SCENE", help="photographs with their cameras")
    parser.add_argument("out", type=path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--inputs",
        metavar="N|NAMES",
        help=f"so many photographs, evenly spaced ({INPUTS}), or all, or names with commas between",
    )
    parser.add_argument("--path", default="interpolate", help="see above (interpolate)")
    parser.add_argument("--frames", type=int, help="number of frames (120)")
    parser.add_argument("--fps", type=float, default=30.0, help="frames a second of the video (30)")
    parser.add_argument(
        "--hold-out", type=int, default=0, metavar="N", help="photographs to score renders by (0)"
    )
    add_scene_options(parser)
    add_background_option(parser)
    of_paths = parser.add_argument_group("options of paths")
    for name, text in _OPTIONS.items():
        kind = {"action": "store_true", "default": None} if name == "closed" else {"type": float}
        of_paths.add_argument(f"--{name}", help=text, **kind)
    of_gaussians = parser.add_argument_group("of a GSLRM")
    of_gaussians.add_argument("--ply", type=path, metavar="FILE", help="to write Gaussians to")
    of_gaussians.add_argument(
        "--ply-min-opacity", type=float, metavar="X", help="write those at least as opaque (0: all)"
    )
    parser.add_argument("--no-video", dest="video", action="store_false", help="write frames alone")
    parser.add_argument(
        "--video-scale",
        type=int,
        metavar="N",
        help=f"times that the video enlarges frames (until they have {_WATCHED} pixels)",
    )
    parser.add_argument("--show-inputs", action="store_true", help="beside the frames in the video")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the frames of another command in OUT"
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        render(given)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise


def render(given: argparse.Namespace) -> None:
    """Renders as the command line asks; raises before anything is rendered if it cannot."""
    _check_numbers(given)
    background, weights = background_of(given), choose_weights(given)
    # What takes seconds to import comes after what takes none to refuse.
    from lvsm_jax.programs.scene_differences import differences, lacks_scale
    from lvsm_jax.scenes.trajectories import make_path

    scene = open_posed(given, background)
    inputs, kept = split_photographs(scene, given.inputs, given.hold_out)
    options = {name: getattr(given, name) for name in _OPTIONS if getattr(given, name) is not None}
    cameras = make_path(given.path, [chosen.camera for chosen in inputs], given.frames, options)

    from lvsm_jax.programs import held_out
    from lvsm_jax.rendering import frames
    from lvsm_jax.scenes.camera_json import write_camera_path
    from lvsm_jax.weights import exports
    from lvsm_jax.weights.shipped import weights_line

    about = exports.describe(weights)
    if given.ply and about["architecture"] != "GSLRM":
        raise UserError(f"--ply: {about['architecture']} makes no Gaussians, only GSLRM does")
    height, width = picture_size(given.size, about)
    photographs = [chosen.load() for chosen in inputs]
    targets = [chosen.load() for chosen in kept]
    folder = pathlib.Path(given.out)
    record = _record(given, weights, photographs, cameras, (height, width))
    record |= {"held_out": [chosen.name for chosen in kept]} if kept else {}
    if given.ply:
        record |= {"ply": given.ply, "ply_min_opacity": given.ply_min_opacity or 0.0}
        if not frames.has_record(folder, record):
            check_new_file(given.ply, given.overwrite)
        check_parent(given.ply)
    metrics = held_out.metrics() if kept else None
    views, frame = [chosen.camera for chosen in inputs], frame_of(about, given.scale)
    scale = given.scale if frame is None else frame.scale
    for note in (*differences(about, views, (height, width)), *lacks_scale(views, scale)):
        print(f"note: {printable(note)}", file=sys.stderr)
    print(
        f"{printable(weights_line(weights, about))}\n"
        f"{len(inputs)} of {len(scene.photographs)} photographs of {scene.source}: "
        f"{printable(', '.join(chosen.name for chosen in inputs))}\n"
        f"{len(cameras)} frames of {width}×{height} pixels along {given.path}"
    )
    frames.check_folder(folder, record, given.overwrite)
    check_writable("OUT", folder)
    with _opened(weights, photographs, (height, width), given.scale, frame) as session:
        frames.take_folder(folder, record, given.overwrite)
        if given.ply:
            _write_gaussians(given, session)
        write_camera_path(folder / "path.json", cameras)
        files = {folder / f"frame_{i:05d}.png": camera for i, camera in enumerate(cameras)}
        missing = {file: camera for file, camera in files.items() if not file.exists()}
        renders = session.render_path(list(missing.values()), height=height, width=width)
        frames.save_frames(renders, list(missing), len(files))
        if kept:
            of_kept = held_out.evaluate(session, photographs, targets, (height, width), metrics)
            held_out.save(folder, *of_kept)
            print(f"{held_out.table(of_kept[1])}\nof each: {folder / 'held_out.csv'}")
        pictures = [view.picture for view in session.views.values()]
    wrote = f"wrote {len(cameras)} frames to {folder}"
    if given.video:
        scale = given.video_scale or -(-_WATCHED // min(height, width))
        strip = frames.strip_of(pictures, scale) if given.show_inputs else None
        wrote += f", and {frames.write_video(folder, len(cameras), given.fps, scale, strip)}"
    named = f" --weights={weights}" if given.export or given.weights else ""
    print(f"{wrote}\nWalk through the scene: lvsm view {given.scene}{named}")


@contextlib.contextmanager
def _opened(
    weights: str,
    photographs: "Sequence[Photograph]",
    size: tuple[int, int],
    scale: float | None,
    frame: "SceneFrame | None",
) -> "Iterator[Session]":
    """The session that renders the photographs' scene."""
    from lvsm_jax.rendering.session import Session
    from lvsm_jax.weights import exports

    model = exports.load(weights, for_rendering=True)
    options = {"image_height": size[0], "image_width": size[1], "scale": scale}
    if frame is not None:
        options |= {"scale": None, "frame": frame}
    with Session(model, max_views=len(photographs), **options) as session:
        session.add(photographs)
        yield session


def _write_gaussians(given: argparse.Namespace, session: "Session") -> None:
    from lvsm_jax.gaussians.ply import write_ply

    gaussians = session.gaussians
    written = write_ply(given.ply, gaussians, min_opacity=given.ply_min_opacity or 0.0)
    print(f"wrote {written:,} of {len(gaussians.means):,} Gaussians to {given.ply}")


def _check_numbers(given: argparse.Namespace) -> None:
    """UserError for options that cannot be, whatever the scene."""
    if not (given.fps > 0 and math.isfinite(given.fps)):
        raise UserError(f"--fps={given.fps}, expected a positive number")
    if given.video_scale is not None and given.video_scale < 1:
        raise UserError(f"--video-scale={given.video_scale}, expected at least 1")
    if given.ply_min_opacity is not None:
        if not given.ply:
            raise UserError("--ply-min-opacity needs --ply=FILE")
        if not 0 <= given.ply_min_opacity <= 1:
            raise UserError(f"--ply-min-opacity={given.ply_min_opacity}, expected 0 to 1")
    if given.hold_out < 0:
        raise UserError(f"--hold-out={given.hold_out}, expected a positive number")
    if given.video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(
            "a video needs imageio-ffmpeg: pip install 'lvsm_jax[video]', or give --no-video"
        )


def _record(
    given: argparse.Namespace,
    weights: str,
    photographs: "Sequence[Photograph]",
    cameras: "Sequence[PosedCamera]",
    size: tuple[int, int],
) -> dict[str, Any]:
    """What the frames depend on. The speed of the video is none of it."""
    from etils import epath

    from lvsm_jax.scenes.camera_json import as_json

    export = epath.Path(weights)
    of_export = [export / "config.json", *sorted((export / "weights").glob("_*"))]  # with dates
    return {
        "export": _digest(*(file.read_text() for file in of_export)),
        "scene": given.scene,
        "inputs": {
            photograph.name: _digest(photograph.pixels, as_json([photograph.camera]))
            for photograph in photographs
        },
        "path": given.path,
        "frames": len(cameras),
        "cameras": _digest(as_json(cameras)),
        "height": size[0],
        "width": size[1],
        "scale": given.scale,
    }


def _digest(*parts: Any) -> str:
    """Tells contents apart: arrays, and what JSON can hold."""
    result = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if hasattr(part, "tobytes") else json.dumps(part).encode()
        result.update(f"{len(data)} ".encode() + data)
    return result.hexdigest()[:16]
