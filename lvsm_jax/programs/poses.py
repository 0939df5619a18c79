"""Finds the cameras of photographs that have none, by pycolmap.

    lvsm poses PHOTOGRAPHS
    lvsm poses walk.mp4 walk_poses/ --frames=30

PHOTOGRAPHS is a folder of pictures, or a video, of which evenly spaced frames are taken. OUTPUT, by
default PHOTOGRAPHS/lvsm_poses, becomes a scene for `lvsm render`, `lvsm view` and others: upright
and undistorted pictures, their cameras as cameras.json and as a COLMAP model, and check.html, which
shows whether the cameras are right. It appears whole or not at all. `lvsm render PHOTOGRAPHS OUT`
does the same first by itself.

Twenty photographs are a good number, each showing half or more of what its neighbour shows, from
places a step apart; two are enough where things lie at several depths. Cameras that are doubtful
are refused, with the photographs that did not join. The same photographs give the same cameras.

Needs pip install 'lvsm_jax[poses]'; HEIC pictures lvsm_jax[heic], a video lvsm_jax[video].
"""

import sys

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.text import printable
from lvsm_jax.programs.scene_options import add_background_option, background_of


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, finds the poses, and says what came of it."""
    from lvsm_jax.poses import PosesRefused, find, find_poses
    from lvsm_jax.programs.progress import bars

    parser = argument_parser("poses", __doc__)
    add = parser.add_argument
    add("photographs", metavar="PHOTOGRAPHS", type=path, help="folder of pictures, or a video")
    add("output", metavar="OUTPUT", nargs="?", type=path, help="(PHOTOGRAPHS/lvsm_poses)")
    add("--frames", type=int, help=f"of a video ({find.FRAMES})")
    add(
        "--max-size",
        type=int,
        metavar="PIXELS",
        help=f"of the longer side, to which pictures are reduced ({find.MAX_SIZE})",
    )
    add_background_option(parser)
    add("--overwrite", action="store_true", help="find the poses anew")
    given = parser.parse_args(arguments)
    background = background_of(given)
    try:
        with bars() as progress:
            found = find_poses(
                given.photographs,
                given.output,
                progress=progress,
                max_size=given.max_size,
                frames=given.frames,
                background=background,
                overwrite=given.overwrite,
            )
    except PosesRefused as refused:
        print(_listed(refused.left_out), end="", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise
    print(_listed(found.left_out) + "".join(f"{printable(note)}\n" for note in found.notes), end="")
    kept = "there already, of these photographs" if found.reused else "wrote"
    print(f"{kept}: {found.folder}\nare they right? {found.page}")
    print(f"Render them: lvsm render {found.folder} OUT, or walk through: lvsm view {found.folder}")


def _listed(left_out: dict[str, str]) -> str:
    return "".join(f"left out {printable(name)}: {why}\n" for name, why in left_out.items())


if __name__ == "__main__":
    main()
