r"""Makes a dataset of renders of objects, with their transparency.

    lvsm import-objects ~/gso data/gso --composited=white --test-share=1
    lvsm import-objects ~/nerf_synthetic data/nerf
    lvsm import-objects ~/views_release data/objaverse --fov=49.134 --layout=zero123
    lvsm import-objects ~/gobjaverse data/gobjaverse --objects='*/*'

FOLDER has a folder for each object (`--objects` is for others). Layouts are told apart by their
files, or named by `--layout`:

    opencv_cameras  opencv_cameras.json                     renders of Google Scanned Objects
    blender         transforms_train.json, _val, _test      nerf-synthetic
    zero123         000.png, 000.npy                        Objaverse; needs --fov
    ssd_lvsm        the same with other axes                needs --fov
    lgm             rgb/000.png, pose/000.txt               needs --fov
    gobjaverse      campos_512_v4/00000/00000.{png,json}    G-Objaverse
    scene           any other of `lvsm render`

OUTPUT becomes a dataset directory as any other. PNGs and JPEGs are kept bit for bit, transparent
ones too: they are put on the background when they are read, straight colours in the stored gamma.
Colours of some renders lie on a background already: `--composited=white` says so, and then pixels
of alpha 0 must be white. Where they are white and nobody said what that means the object is
refused. Cameras stay as they are; a camera that does not look at the origin is told by name.

Stop it at any time, and give the same command again: finished objects are kept. An object is taken
or refused as a whole; what was refused, and why, is printed and written to OUTPUT/refused.json.
"""

from collections.abc import Sequence

from etils import epath

from input_pipeline.import_report import Finding
from input_pipeline.objects.object_clip import STRAIGHT, ReadObject
from input_pipeline.own_scenes.folder_import import (
    TEST_SHARE,
    Kind,
    add_import_options,
    check_import_options,
    import_folder,
)
from lvsm_jax.common.colours import colour_of
from lvsm_jax.common.command_line import argument_parser, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.scenes.readers.objects import LAYOUTS
from lvsm_jax.scenes.readers.scene import naming

OBJECTS = Kind("objects", "import-objects")
_BACKGROUND = "white"


def run(
    source: epath.PathLike,
    output: epath.PathLike,
    *,
    objects: str = "*",
    layout: str | None = None,
    fov: float | None = None,
    composited: str | None = None,
    background: str | None = None,
    test_share: float = TEST_SHARE,
    test_objects: Sequence[str] = (),
    workers: int = 1,
    strict: bool = False,
    overwrite: bool = False,
) -> list[Finding]:
    """Imports as the command line does, prints the report and returns the findings.

    UserError says why it could not be done; with `strict`, also that an object was refused.
    """
    if fov is not None and not 0 < fov < 180:
        raise UserError(f"--fov={fov:g}, expected degrees from 0 to 180")
    with naming("--background"):
        colour = colour_of(background or _BACKGROUND)
    with naming("--composited"):
        lies_on = None if composited in (None, STRAIGHT) else colour_of(composited)
    if background is None:
        print(f"note: transparent pictures will be read on {_BACKGROUND} (--background)")
    how = {"layout": layout, "fov": fov, "composited": composited, "background": background}
    return import_folder(
        OBJECTS,
        *(source, output, objects),
        read=ReadObject(layout, fov, composited),
        how=how,
        held_out=(test_share, test_objects),
        alpha=Alpha(colour, lies_on),
        workers=workers,
        strict=strict,
        overwrite=overwrite,
    )


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argument_parser("import-objects", __doc__)
    add = parser.add_argument
    add_import_options(parser, OBJECTS, "a folder for each object")
    add("--layout", choices=LAYOUTS, help="of all objects (by the files of each)")
    text = "horizontal field of view in degrees, where files hold none; zero123's is 49.134"
    add("--fov", type=float, metavar="X", help=text)
    text = (
        f"colour that colours of transparent pictures lie on already; {STRAIGHT}: they are straight"
        " (straight, unless clear pixels are white: then refused)"
    )
    add("--composited", metavar="COLOUR", help=text)
    text = f"that transparent pictures are put on when they are read ({_BACKGROUND})"
    add("--background", metavar="COLOUR", help=text)
    given = parser.parse_args(arguments)
    check_import_options(parser, given, all_held_out=True)
    run(**vars(given))
    print(
        "\nAn evaluation index, and training in the objects' own frame (docs/objects.md):\n"
        f"  lvsm make-index {given.output} --by=gso\n"
        "  lvsm train --config=configs/object_256.py --workdir=runs/objects"
        f" --config.data.path={given.output}"
    )


if __name__ == "__main__":
    main()
