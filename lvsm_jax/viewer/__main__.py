"""Opens a scene of photographs in the browser, rendered by a model from wherever one looks.

    python -m lvsm_jax.viewer                       what `make demo` trained, in a synthetic room
    python -m lvsm_jax.viewer EXPORT SCENE
    python -m lvsm_jax.viewer runs/re10k/export photos/ --inputs=8

EXPORT is a directory that train.py or lvsm_jax.export wrote, of an EfficientLVSM. SCENE is a folder
with cameras.json, nerfstudio's transforms.json or a COLMAP model, or a clip DATASET/SPLIT:KEY, as
for python -m lvsm_jax.programs.render. Needs pip install 'lvsm_jax[viewer]'.

The page has the photographs as frustums, those in use in orange, and behind them the render, coarse
while one moves and full when one stands still; a list to add and remove photographs, also new ones
with their cameras.json; paths to play; and the nearest photograph beside the render. Several
visitors see the same photographs, each from where they are. Ctrl-C ends it.

Only this computer can open it unless --host says otherwise: whoever can, sees the photographs. From
another one, over ssh: ssh -L 8080:localhost:8080 NAME, and then http://localhost:8080.
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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from input_pipeline.clip_scene import open_scene
from lvsm_jax.common.errors import UserError
from lvsm_jax.programs.scene_options import (
    INPUTS,
    add_scene_options,
    choose_inputs,
    picture_size,
)
from lvsm_jax.scenes.readers import Scene, ScenePhotograph

if TYPE_CHECKING:
    from lvsm_jax.rendering.session import Session

_EXPORT = "runs/quickstart/export"
_DATASET = "data/synthetic"


@contextlib.contextmanager
def serve(given: argparse.Namespace) -> Iterator[str]:
    """Serves the page as the command line asks, and yields its address.

    Raises:
        ValueError, OSError: what is wrong, before the page is there.
    """
    if importlib.util.find_spec("viser") is None:
        raise UserError("the viewer needs viser: pip install 'lvsm_jax[viewer]'")
    for name in ("max_views", "max_visitors", "max_upload_mb"):
        if getattr(given, name) < 1:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}={getattr(given, name)}, expected at least 1")
    scene = open_scene(given.scene or _first_room(), images=given.images)
    for note in scene.notes:
        print(f"note: {note}", file=sys.stderr)
    inputs = choose_inputs(scene, given.inputs)

    from lvsm_jax.rendering.session import Session
    from lvsm_jax.viewer.gallery import Gallery
    from lvsm_jax.viewer.geometry import coarse_size
    from lvsm_jax.viewer.server import Viewer, check_address
    from lvsm_jax.viewer.uploads import Limits
    from lvsm_jax.weights import exports  # imports JAX and Orbax, which takes seconds

    check_address(given.host, given.port)
    export = given.export or _EXPORT
    size = picture_size(given.size, exports.describe(export))
    how = {} if given.cache_dtype is None else {"cache_dtype": given.cache_dtype}
    model = exports.load(export, **how)
    max_views = max(given.max_views, len(inputs))
    with Session(
        model,
        image_height=size[0],
        image_width=size[1],
        max_views=max_views,
        scale=given.scale,
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
            max_visitors=given.max_visitors,
            limits=Limits(bytes=given.max_upload_mb * 2**20),
        )
        try:
            print(_summary(scene, inputs, size))
            yield viewer.url
        finally:
            viewer.close()


def prepare(
    session: "Session", inputs: Sequence[ScenePhotograph], sizes: Sequence[tuple[int, int]]
) -> None:
    """Adds the first photographs, and compiles all that visitors will use."""
    first = [chosen.load() for chosen in tqdm(inputs, "decoding", unit="photograph", leave=False)]
    with tqdm(total=len(sizes) + 2, desc="compiling", unit="program", leave=False) as progress:
        session.add(first)
        progress.update()
        for height, width in sizes:
            session.render(first[0].camera, height=height, width=width)
            progress.update()
        session.remove(first[-1].name)
        session.add(first[-1])
        progress.update()


def _summary(scene: Scene, inputs: Sequence[ScenePhotograph], size: tuple[int, int]) -> str:
    return (
        f"{len(inputs)} of {len(scene.photographs)} photographs of {scene.source}, "
        f"{size[1]}×{size[0]} pixels"
    )


def _first_room() -> str:
    """A clip that nothing was trained on."""
    if not pathlib.Path(_EXPORT).is_dir() or not pathlib.Path(_DATASET).is_dir():
        raise UserError(
            f"without EXPORT and SCENE this shows {_EXPORT} in a room of {_DATASET}, which are "
            "not both there: run `make demo` first, or name an export and a scene"
        )
    from input_pipeline.storage import SplitReader  # imports TFDS, which takes seconds

    reader = SplitReader(_DATASET, "test")
    try:
        return f"{_DATASET}/test:{reader.scenes.key[0]}"
    finally:
        reader.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and serves until Ctrl-C or SIGTERM."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Of viser, when a visitor leaves while something is sent to them.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with serve(given) as url:
            print(f"ready: {url}", flush=True)
            stop.wait()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass
    print("closed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.viewer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("export", metavar="EXPORT", nargs="?", help=f"of a model ({_EXPORT})")
    parser.add_argument(
        "scene", metavar="SCENE", nargs="?", help=f"photographs with cameras (a room of {_DATASET})"
    )
    parser.add_argument(
        "--inputs",
        metavar="N|NAMES",
        help=f"in use at first: so many, evenly spaced ({INPUTS}), or all, or names with commas",
    )
    add_scene_options(parser)
    parser.add_argument(
        "--max-views", type=int, default=16, help="most photographs in use; takes memory (16)"
    )
    parser.add_argument(
        "--cache-dtype", metavar="TYPE", help="of the cache: bfloat16, int8, … (as the model says)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free (8080)")
    parser.add_argument("--max-visitors", type=int, default=8, help="at a time (8)")
    parser.add_argument(
        "--max-upload-mb", type=int, default=64, help="MiB that a visitor may upload (64)"
    )
    return parser


if __name__ == "__main__":
    main()
