"""Opens a scene of photographs in the browser, rendered by a model from wherever one looks.

    lvsm view SCENE
    lvsm view photos/ --inputs=8 --weights=runs/re10k/export
    lvsm view                               a world of data/worlds, which `make demo` wrote

SCENE is a folder with cameras.json, nerfstudio's transforms.json or a COLMAP model, a folder of
photographs or a video whose cameras are found first, or a clip DATASET/SPLIT:KEY, as for `lvsm
render`. The weights are those that come with lvsm_jax, or with --weights=EXPORT those of a
directory that `lvsm train` or `lvsm export` wrote, of an EfficientLVSM or a GSLRM, whose Gaussians
your browser draws; `lvsm view EXPORT SCENE` is the same. Needs pip install 'lvsm_jax[viewer]'.

The page shows the render from where you stand, in full while you move if that is quick. A list adds
and removes photographs. Photographs that you drop on the page join the scene if they come with a
file of their cameras, such as cameras.json or transforms.json; of others the cameras are found, and
they become a place of their own. Paths, also of your own key frames, are played and downloaded as a
video; a slider lays a photograph over the render. Several visitors see the same photographs, each
from where they are. Ctrl-C ends.

Only this computer can open the page unless --host says otherwise: then the link that is printed
carries a token, and whoever has the link comes in; with --no-token, whoever reaches the port. From
another computer, over ssh: ssh -L 8080:localhost:8080 NAME, then open http://localhost:8080 there.
"""

import argparse
import contextlib
import importlib.util
import logging
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.text import printable
from lvsm_jax.programs import scene_options
from lvsm_jax.viewer.access import is_loopback, make_token

_DATASET = "data/worlds"


@contextlib.contextmanager
def serve(given: argparse.Namespace) -> Iterator[str]:
    """Serves the page as the command line asks, and yields its address."""
    if importlib.util.find_spec("viser") is None:
        raise UserError("the viewer needs viser: pip install 'lvsm_jax[viewer]'")
    for name in ("max_views", "max_visitors", "max_upload_mb"):
        if getattr(given, name) < 1:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}={getattr(given, name)}, expected at least 1")
    background = scene_options.background_of(given)
    weights = scene_options.choose_weights(given)
    # Imports of what follows take seconds, which --help and the checks above do without.

    given.scene = given.scene or _first_world()
    scene = scene_options.open_posed(given, background)
    inputs = scene_options.choose_inputs(scene, given.inputs)

    from lvsm_jax.programs.scene_differences import differences, lacks_scale
    from lvsm_jax.rendering.session import Session
    from lvsm_jax.viewer.gallery import Gallery, prepare
    from lvsm_jax.viewer.geometry import coarse_size
    from lvsm_jax.viewer.leftovers import clear_leftovers
    from lvsm_jax.viewer.server import Viewer, check_address
    from lvsm_jax.viewer.uploads import Limits
    from lvsm_jax.weights import exports
    from lvsm_jax.weights.shipped import weights_line

    check_address(given.host, given.port)
    clear_leftovers()
    about = exports.describe(weights)
    print(printable(weights_line(weights, about)))
    height, width = size = scene_options.picture_size(given.size, about)
    views = [chosen.camera for chosen in inputs]
    frame = scene_options.frame_of(about, given.scale)
    scale = given.scale if frame is None else frame.scale
    for note in (*differences(about, views, size), *lacks_scale(views, scale)):
        print(f"note: {printable(note)}", file=sys.stderr)
    dtype = {} if given.cache_dtype is None else {"cache_dtype": given.cache_dtype}
    model = exports.load(weights, for_rendering=True, **dtype)
    max_views = max(given.max_views, len(inputs))
    placed = {"scale": given.scale} if frame is None else {"frame": frame}
    with Session(
        model, image_height=height, image_width=width, max_views=max_views, **placed
    ) as session:
        sizes = coarse_size(size, model.config.patch_size), size
        prepare(session, inputs, sizes)
        viewer = Viewer(
            session,
            Gallery(session, scene.photographs, size, max_views),
            sizes=sizes,
            start=inputs[len(inputs) // 2].camera,
            host=given.host,
            port=given.port,
            token=_token(given),
            max_visitors=given.max_visitors,
            limits=Limits(bytes=given.max_upload_mb * 2**20),
        )
        with contextlib.closing(viewer):
            chosen = f"{len(inputs)} of {len(scene.photographs)} photographs of {scene.source}"
            print(f"{chosen}, {width}×{height} pixels")
            yield viewer.url


def _token(given: argparse.Namespace) -> str | None:
    """What the page asks for: beyond this computer, unless the command line says otherwise."""
    asks = not is_loopback(given.host) if given.token is None else given.token
    return make_token() if asks else None


def _first_world() -> str:
    """A clip that nothing was trained on."""
    if not pathlib.Path(_DATASET).is_dir():
        raise UserError(
            f"without SCENE this shows a world of {_DATASET}, which is not there: run `make demo` "
            f"first, or lvsm synthetic {_DATASET} --test-scenes=8, or name a scene"
        )
    from input_pipeline.storage import SplitReader  # only now, so that --help comes at once

    with contextlib.closing(SplitReader(_DATASET, "test")) as reader:
        return f"{_DATASET}/test:{reader.scenes.key[0]}"


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and serves until Ctrl-C or SIGTERM."""
    given = _parser().parse_intermixed_args(arguments)
    if given.scene is None:  # one argument without a name is the scene
        given.export, given.scene = None, given.export
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Of viser, when a visitor leaves while something is sent to them.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    # Of a file that is smaller than was announced: visitors could fill the log.
    warnings.filterwarnings("ignore", message=r"\[viser\] Dropping upload")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with contextlib.suppress(KeyboardInterrupt), serve(given) as url:
        print(f"ready: {url}", flush=True)
        stop.wait()
    print("closed")


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser("view", __doc__)
    add = parser.add_argument
    scene_options.add_weights_options(parser)
    world = f"photographs with cameras (a world of {_DATASET})"
    add("scene", metavar="SCENE", nargs="?", type=path, help=world)
    first = f"a number, evenly spaced ({scene_options.INPUTS}), all, or names with commas"
    add("--inputs", metavar="N|NAMES", help=f"in use at first: {first}")
    scene_options.add_scene_options(parser)
    scene_options.add_background_option(parser)
    add("--max-views", type=int, default=16, help="most photographs in use; takes memory (16)")
    kinds = "of the cache: bfloat16, int8, … (as the model says)"
    add("--cache-dtype", metavar="TYPE", help=kinds)
    add("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    add("--port", type=int, default=8080, help="0: any that is free (8080)")
    asked = "ask for a token, which the printed link carries (beyond this computer)"
    add("--token", action=argparse.BooleanOptionalAction, help=asked)
    add("--max-visitors", type=int, default=8, help="at a time (8)")
    add("--max-upload-mb", type=int, default=64, help="MiB that a visitor may upload (64)")
    return parser


if __name__ == "__main__":
    main()
