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

import json
import os
from collections.abc import Sequence

from etils import epath

from input_pipeline import storage
from input_pipeline.camera_table import CameraTable, write_camera_table
from input_pipeline.import_report import Finding, report
from input_pipeline.jpeg import QUALITY
from input_pipeline.own_scenes import import_scenes
from input_pipeline.own_scenes.import_scenes import Job, Options, Result
from lvsm_jax.common.colours import colour_of
from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import check_writable, clear_unfinished, expand, read_json, write_text
from lvsm_jax.scenes.readers import read_scene
from lvsm_jax.scenes.readers.scene import naming

SETTINGS_FILE = "scenes.json"
_SHARE = 0.1


def run(
    source: epath.PathLike,
    output: epath.PathLike,
    *,
    scenes: str = "*",
    test_share: float = _SHARE,
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
    source, output = expand(source), expand(output)
    with naming("--background"):
        options = Options(quality, images, None if background is None else colour_of(background))
    if _is_inside(output, source):
        raise UserError(f"OUTPUT {output} lies inside of {source}: choose another place")
    check_writable("OUTPUT", output)
    found = import_scenes.find_scenes(source, scenes)
    splits = import_scenes.split_scenes(found, test_share, test_scenes)
    names = {split: [scene.name for scene in members] for split, members in splits.items()}
    how = {"quality": quality, "background": background, "images": images}
    _prepare(output, {"scenes": names, **how}, overwrite)
    jobs = {
        split: import_scenes.make_jobs(output, split, members, options)
        for split, members in splits.items()
    }
    every_job = [job for members in jobs.values() for job in members]
    results, was_left = import_scenes.import_all(every_job, workers)
    return _finish(source, output, jobs, results, was_left, strict)


def _finish(
    source: epath.Path,
    output: epath.Path,
    jobs: dict[str, list[Job]],
    results: dict[Job, Result],
    was_left: bool,
    strict: bool,
) -> list[Finding]:
    """The report, and what declares the dataset complete."""
    by_split = {split: [results[job] for job in members] for split, members in jobs.items()}
    findings = [f for members in by_split.values() for one in members for f in one.findings]
    shards = {split: [one.shard for one in members] for split, members in by_split.items()}
    report(output, shards, findings, "shards")
    refused = sum(finding.refused for finding in findings)
    if strict and refused:
        raise UserError(f"--strict: {refused} refused, see {output / 'refused.json'}")
    full = {s: members for s, members in shards.items() if any(shard.keys for shard in members)}
    if import_scenes.TRAIN not in full:
        told = f"no scene to train on could be read, see {output / 'refused.json'}"
        raise UserError(told + _hint(source))
    if not was_left and (output / "dataset_info.json").exists():
        print(f"{output} was complete already: nothing to do.")
        return findings
    for split in full:
        table = CameraTable.joined([one.cameras for one in by_split[split]])
        write_camera_table(output, split, table)
    storage.finalize(output, import_scenes.NAME, full)
    print(f"{output} is complete.")
    return findings


def _hint(source: epath.Path) -> str:
    """What to do where FOLDER is no folder of scenes, but one of them."""
    try:
        read_scene(source)
    except (UserError, OSError):
        return ""
    name = source.resolve().name
    return f"; {source} is a scene itself: name the folder above it, with --scenes={name!r}"


def _prepare(output: epath.Path, settings: dict, overwrite: bool) -> None:
    """Makes OUTPUT ready; UserError where it holds other scenes, or something else."""
    path, wanted = output / SETTINGS_FILE, json.loads(json.dumps(settings))
    if path.exists():
        there = read_json(path)
        if there != wanted and not overwrite:
            changed = [name for name in wanted if there.get(name) != wanted[name]]
            raise UserError(
                f"{output} was imported with other {', '.join(changed)}: choose another OUTPUT, or "
                "replace what is there with --overwrite"
            )
        if there != wanted:
            _remove(output)
    elif output.exists() and any(not one.name.startswith(".") for one in output.iterdir()):
        raise UserError(
            f"{output} is not empty and holds no {SETTINGS_FILE}: not made by import-scenes; "
            "choose another OUTPUT"
        )
    for folder in (output, output / import_scenes.STATE):
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder)
    write_text(path, json.dumps(wanted, indent=1))


def _remove(output: epath.Path) -> None:
    """Removes an import, what declares it complete first, and nothing that it did not write."""
    (output / "dataset_info.json").unlink(missing_ok=True)
    if (output / import_scenes.STATE).exists():
        (output / import_scenes.STATE).rmtree()
    ours = ("features.json", "refused.json")
    starts = (f"{import_scenes.NAME}-", "cameras-")
    for file in output.iterdir():
        if file.name in ours or file.name.startswith(starts):
            file.unlink()


def _is_inside(output: epath.Path, source: epath.Path) -> bool:
    if "://" in os.fspath(output) or "://" in os.fspath(source):
        return False
    inner, outer = (os.path.realpath(place) for place in (output, source))
    return os.path.commonpath([inner, outer]) == outer


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argument_parser("import-scenes", __doc__)
    add = parser.add_argument
    add("source", metavar="FOLDER", type=path, help="folder with a folder for each scene")
    add("output", metavar="OUTPUT", type=path, help="dataset directory to make; may be gs://")
    text = "which of FOLDER are scenes: folders, or files of cameras (default: %(default)s)"
    add("--scenes", default="*", metavar="PATTERN", help=text)
    held_out = parser.add_mutually_exclusive_group()
    text = (
        "share of the scenes that are held out, as the split `test`; which ones is decided by a"
        " hash of their names, so that a scene stays where it is when others are added"
        " (default: %(default)s)"
    )
    held_out.add_argument("--test-share", type=float, default=_SHARE, metavar="X", help=text)
    text = "hold out these scenes instead"
    held_out.add_argument("--test-scenes", nargs="+", default=(), metavar="NAME", help=text)
    text = "of JPEGs that are made, 1 to 100 (default: %(default)s)"
    add("--quality", type=int, default=QUALITY, metavar="Q", help=text)
    text = "of transparent pixels: white, black, grey, #rrggbb or r,g,b (refused)"
    add("--background", metavar="COLOUR", help=text)
    add("--images", metavar="NAME", help="folder of the images inside each scene (where it says)")
    text = "processes, each with one shard at a time (default: %(default)s)"
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help=text)
    text = "where a scene is refused, exit with 1 and do not declare the dataset complete"
    add("--strict", action="store_true", help=text)
    text = "replace what was imported from other scenes, or in another way (otherwise an error)"
    add("--overwrite", action="store_true", help=text)
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers must be at least 1, not {given.workers}")
    if not 0 <= given.test_share < 1:
        parser.error(f"--test-share must be from 0 to below 1, not {given.test_share}")
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
