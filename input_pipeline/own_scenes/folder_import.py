"""Imports a folder with a folder for each scene, or object: from the command line to the report."""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from input_pipeline import storage
from input_pipeline.alpha import ALPHA_FILE, DatasetAlpha, write_alpha
from input_pipeline.camera_table import CameraTable, write_camera_table
from input_pipeline.import_report import Finding, report
from input_pipeline.own_scenes import import_scenes
from input_pipeline.own_scenes.import_scenes import ClipReader, Job, Result
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import check_writable, clear_unfinished, expand, read_json, write_text
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.scenes.readers import read_scene

TEST_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is imported."""

    name: str  # of many: of the dataset, its option and its file of settings
    command: str

    @property
    def one(self) -> str:
        """The name of one."""
        return self.name.removesuffix("s")

    @property
    def settings_file(self) -> str:
        """In OUTPUT, what it was imported from, and how."""
        return f"{self.name}.json"


def import_folder(
    kind: Kind,
    source: epath.PathLike,
    output: epath.PathLike,
    pattern: str,
    *,
    read: ClipReader,
    how: Mapping[str, Any],
    held_out: tuple[float, Sequence[str]],
    alpha: Alpha | None = None,
    workers: int,
    strict: bool,
    overwrite: bool,
) -> list[Finding]:
    """Imports what the pattern matches, prints the report and returns the findings.

    `how` is what `read` depends on, as JSON, and `held_out` the share of the test split, or the
    names of its members. `alpha` is how transparent pictures are read, where they stay so.
    UserError says why it could not be done; with `strict`, also that a scene was refused.
    """
    source, output = expand(source), expand(output)
    if _is_inside(output, source):
        raise UserError(f"OUTPUT {output} lies inside of {source}: choose another place")
    check_writable("OUTPUT", output)
    found = import_scenes.find_scenes(source, pattern, f"--{kind.name}")
    splits = import_scenes.split_scenes(found, *held_out, kind.one)
    names = {split: [scene.name for scene in members] for split, members in splits.items()}
    _prepare(kind, output, {kind.name: names, **how}, overwrite)
    jobs = {
        split: import_scenes.make_jobs(output, kind.name, split, members, read)
        for split, members in splits.items()
    }
    every_job = [job for members in jobs.values() for job in members]
    results, was_left = import_scenes.import_all(every_job, workers)
    return _finish(kind, source, output, jobs, results, alpha, was_left, strict)


def _finish(
    kind: Kind,
    source: epath.Path,
    output: epath.Path,
    jobs: dict[str, list[Job]],
    results: dict[Job, Result],
    alpha: Alpha | None,
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
    if not full or (import_scenes.TRAIN in jobs and import_scenes.TRAIN not in full):
        told = f"no {kind.one} to train on could be read, see {output / 'refused.json'}"
        raise UserError(told + _hint(kind, source))
    if not was_left and (output / "dataset_info.json").exists():
        print(f"{output} was complete already: nothing to do.")
        return findings
    for split in full:
        table = CameraTable.joined([one.cameras for one in by_split[split]])
        write_camera_table(output, split, table)
    if alpha is not None:
        there = any(one.transparent for members in by_split.values() for one in members)
        write_alpha(output, DatasetAlpha(alpha, there))
    storage.finalize(output, kind.name, full)
    print(f"{output} is complete.")
    return findings


def _hint(kind: Kind, source: epath.Path) -> str:
    """What to do where FOLDER is no folder of scenes, but one of them."""
    try:
        read_scene(source)
    except (UserError, OSError):
        return ""
    name = source.resolve().name
    a = "an" if kind.one[0] in "aeiou" else "a"
    return (
        f"; {source} is {a} {kind.one} itself: name the folder above it, with "
        f"--{kind.name}={name!r}"
    )


def _prepare(kind: Kind, output: epath.Path, settings: dict, overwrite: bool) -> None:
    """Makes OUTPUT ready; UserError where it holds other scenes, or something else."""
    path, wanted = output / kind.settings_file, json.loads(json.dumps(settings))
    if path.exists():
        there = read_json(path)
        if there != wanted and not overwrite:
            changed = [name for name in wanted if there.get(name) != wanted[name]]
            raise UserError(
                f"{output} was imported with other {', '.join(changed)}: choose another OUTPUT, or "
                "replace what is there with --overwrite"
            )
        if there != wanted:
            _remove(kind, output)
    elif output.exists() and any(not one.name.startswith(".") for one in output.iterdir()):
        raise UserError(
            f"{output} is not empty and holds no {kind.settings_file}: not made by {kind.command}; "
            "choose another OUTPUT"
        )
    for folder in (output, output / import_scenes.STATE):
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder)
    write_text(path, json.dumps(wanted, indent=1))


def _remove(kind: Kind, output: epath.Path) -> None:
    """Removes an import, what declares it complete first, and nothing that it did not write."""
    (output / "dataset_info.json").unlink(missing_ok=True)
    if (output / import_scenes.STATE).exists():
        (output / import_scenes.STATE).rmtree()
    ours = ("features.json", "refused.json", ALPHA_FILE)
    starts = (f"{kind.name}-", "cameras-")
    for file in output.iterdir():
        if file.name in ours or file.name.startswith(starts):
            file.unlink()


def _is_inside(output: epath.Path, source: epath.Path) -> bool:
    if "://" in os.fspath(output) or "://" in os.fspath(source):
        return False
    inner, outer = (os.path.realpath(place) for place in (output, source))
    return os.path.commonpath([inner, outer]) == outer


def add_import_options(parser: argparse.ArgumentParser, kind: Kind, what: str) -> None:
    """Adds FOLDER, OUTPUT, and which of `what` is where; `check_import_options` reads on."""
    add, many = parser.add_argument, kind.name
    add("source", metavar="FOLDER", type=os.path.expanduser, help=f"folder with {what}")
    text = "dataset directory to make; may be gs://"
    add("output", metavar="OUTPUT", type=os.path.expanduser, help=text)
    text = f"which of FOLDER are {many}: folders, or files of cameras (default: %(default)s)"
    add(f"--{many}", default="*", metavar="PATTERN", help=text)
    held_out = parser.add_mutually_exclusive_group()
    text = (
        f"share of the {many} that are held out, as the split `test`; which ones is decided by a"
        f" hash of their names, so that one stays where it is when others are added"
        " (default: %(default)s)"
    )
    held_out.add_argument("--test-share", type=float, default=TEST_SHARE, metavar="X", help=text)
    text = f"hold out these {many} instead"
    held_out.add_argument(f"--test-{many}", nargs="+", default=(), metavar="NAME", help=text)
    text = "processes, each with one shard at a time (default: %(default)s)"
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help=text)
    text = "where one is refused, exit with 1 and do not declare the dataset complete"
    add("--strict", action="store_true", help=text)
    text = f"replace what was imported from other {many}, or in another way (otherwise an error)"
    add("--overwrite", action="store_true", help=text)


def check_import_options(
    parser: argparse.ArgumentParser, given: argparse.Namespace, *, all_held_out: bool = False
) -> None:
    """Ends the program for numbers that cannot be; all may be held out where that makes sense."""
    if given.workers < 1:
        parser.error(f"--workers must be at least 1, not {given.workers}")
    if not (0 <= given.test_share < 1 or (all_held_out and given.test_share == 1)):
        to = "to 1" if all_held_out else "to below 1"
        parser.error(f"--test-share must be from 0 {to}, not {given.test_share}")
