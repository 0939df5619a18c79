r"""Makes a dataset of a folder of scenes: of posed photographs, in any format that is read here.

    lvsm import-scenes ~/DL3DV-10K/1K data/dl3dv
    lvsm import-scenes ~/captures data/mine --test-scenes kitchen garden

FOLDER has a folder for each scene (`--scenes` is for others, such as '*/*' or
'*/transforms_train.json'), in any format of `lvsm render`: DL3DV's, nerfstudio's, COLMAP models,
cameras.json and so on. OUTPUT becomes a dataset directory as RealEstate10K's, which training and
evaluation read frame by frame, and a table of the cameras, by which training draws views that have
something in common. The names of the folders are the names of the clips.

JPEGs are copied bit for bit (their EXIF, and the places in it, too) where they are upright and of a
pinhole camera. Others are turned, undistorted or put on the background, and become JPEGs of
`--quality`, 4:4:4. A scene is taken or refused as a whole; what was refused, and why, is printed
and written to OUTPUT/refused.json.

Stop it at any time, however rudely, and give the same command again: finished scenes are kept, and
the files come out the same. Scenes that were refused, or whose files have changed, are tried again.
"""

from collections.abc import Sequence

from etils import epath

from input_pipeline.import_report import Finding
from input_pipeline.jpeg import QUALITY
from input_pipeline.own_scenes.folder_import import (
    TEST_SHARE,
    Kind,
    add_import_options,
    check_import_options,
    import_folder,
)
from input_pipeline.own_scenes.scene_clip import ReadScene
from lvsm_jax.common.colours import colour_of
from lvsm_jax.common.command_line import argument_parser, program
from lvsm_jax.scenes.readers.scene import naming

SCENES = Kind("scenes", "import-scenes")


def run(
    source: epath.PathLike,
    output: epath.PathLike,
    *,
    scenes: str = "*",
    test_share: float = TEST_SHARE,
    test_scenes: Sequence[str] = (),
    quality: int = QUALITY,
    background: str | None = None,
    images: str | None = None,
    workers: int = 1,
    strict: bool = False,
    overwrite: bool = False,
) -> list[Finding]:
    """Imports as the command line does, prints the report and returns the findings.

    UserError says why it could not be done; with `strict`, also that a scene was refused.
    """
    with naming("--background"):
        colour = None if background is None else colour_of(background)
    return import_folder(
        SCENES,
        *(source, output, scenes),
        read=ReadScene(quality, images, colour),
        how={"quality": quality, "background": background, "images": images},
        held_out=(test_share, test_scenes),
        workers=workers,
        strict=strict,
        overwrite=overwrite,
    )


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argument_parser("import-scenes", __doc__)
    add = parser.add_argument
    add_import_options(parser, SCENES, "a folder for each scene")
    text = "of JPEGs that are made, 1 to 100 (default: %(default)s)"
    add("--quality", type=int, default=QUALITY, metavar="Q", help=text)
    text = "of transparent pixels: white, black, grey, #rrggbb or r,g,b (refused)"
    add("--background", metavar="COLOUR", help=text)
    add("--images", metavar="NAME", help="folder of the images inside each scene (where it says)")
    given = parser.parse_args(arguments)
    check_import_options(parser, given)
    if not 1 <= given.quality <= 100:
        parser.error(f"--quality must be from 1 to 100, not {given.quality}")
    run(**vars(given))
    print(
        "\nAn evaluation index of its test split, then training (docs/data.md):\n"
        f"  lvsm make-index {given.output}\n"
        "  lvsm train --config=configs/own_256.py --workdir=runs/own"
        f" --config.data.path={given.output}"
    )


if __name__ == "__main__":
    main()
