"""Shows on a page whether the cameras of a scene fit its photographs.

    lvsm check SCENE
    lvsm check data/re10k/test:6b658b1d8562dc85 page.html

SCENE is whatever `lvsm render` takes: a folder with cameras.json, transforms.json or a COLMAP
model, or a clip of a dataset. Points are matched by their looks alone; where cameras are right, a
point of one photograph lies on a line of the other that both cameras give. The page shows pairs
with these lines and the distances in pixels, and the cameras from above. A line says what to think
of it: right, doubtful, wrong, or unknown where nothing matches.

Needs pip install 'lvsm_jax[poses]'.
"""

import pathlib
import sys

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import check_new_file, check_parent, check_writable
from lvsm_jax.common.text import printable
from lvsm_jax.programs.scene_options import add_background_option, background_of

_PAGE = "lvsm_check.html"


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, checks, and prints the verdict."""
    parser = argument_parser("check", __doc__)
    add = parser.add_argument
    add("scene", metavar="SCENE", type=path, help="photographs with their cameras")
    add("page", metavar="PAGE", nargs="?", type=path, help=f"file to write (SCENE/{_PAGE})")
    add("--images", type=path, metavar="FOLDER", help="of the images, if not that of the cameras")
    add(
        "--photographs", type=int, default=24, metavar="N", help="at most so many are compared (24)"
    )
    add_background_option(parser)
    add("--overwrite", action="store_true", help="replace the page")
    given = parser.parse_args(arguments)
    background, page = background_of(given), _page_of(given.scene, given.page)
    check_parent(page)
    check_new_file(page, given.overwrite)
    check_writable("PAGE", page.parent)
    # Imports of what follows take seconds, which --help and the checks above do without.
    from input_pipeline.clip_scene import open_scene
    from lvsm_jax.poses.check import check_scene
    from lvsm_jax.programs.progress import bars

    scene = open_scene(given.scene, images=given.images, background=background)
    for note in scene.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    with bars() as progress:
        checked = check_scene(scene, page, most=given.photographs, progress=progress)
    print(f"{checked.kind}: {checked.sentence}\nwrote {page}")


def _page_of(scene: str, page: str | None) -> pathlib.Path:
    if page is not None:
        return pathlib.Path(page)
    there = pathlib.Path(scene)
    if not there.exists():
        raise UserError(
            f"no scene {scene}: no such file or folder; for a clip, DATASET/SPLIT:KEY, name the "
            "PAGE to write too"
        )
    return there / _PAGE if there.is_dir() else there.with_name(_PAGE)


if __name__ == "__main__":
    main()
