"""From photographs to a scene: the steps, in the worker's process."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pycolmap

import lvsm_jax
from lvsm_jax.common import files
from lvsm_jax.poses import (
    features,
    judge,
    many_views,
    match_posed,
    page,
    pictures,
    result,
    two_views,
)
from lvsm_jax.poses.find import PAGE, RECORD
from lvsm_jax.poses.gates import Verdict
from lvsm_jax.poses.many_views import Told
from lvsm_jax.poses.pairs import pairs_to_match
from lvsm_jax.poses.pictures import Upright
from lvsm_jax.poses.process import PosesRefused
from lvsm_jax.scenes.readers.scene import some_of

_FEWEST_FEATURES = 50  # of a photograph that can be matched


def reconstruct(job: dict[str, Any], work: pathlib.Path, told: Told) -> dict[str, Any]:
    """Makes `work/result` of the job's photographs; what `PosesFound` says of it.

    UserError for photographs that cannot be used, PosesRefused for cameras that are not believed.
    """
    folder, database = work / "photographs", work / "database.db"
    folder.mkdir()
    pycolmap.set_random_seed(features.SEED)
    photographs = _write_uprights(job, folder, told)
    features.write_database(database, photographs).close()
    features.extract_features(database, folder, photographs, lambda *n: told("features", *n))
    plain = _without_texture(database, photographs)
    if len(plain) > len(photographs) - 2:
        raise PosesRefused(
            f"{some_of(plain)} {'has' if len(plain) == 1 else 'have'} too little texture to be "
            "matched: take photographs of things with detail, sharp and well lit",
            dict.fromkeys(plain, "too little texture"),
        )
    pairs = pairs_to_match(len(photographs), in_order=job["frames"] is not None)
    features.match_pairs(database, photographs, pairs, lambda *n: told("matching", *n))
    if len(photographs) == 2:
        found, verdict = _of_two(database, folder, photographs)
    else:
        one_camera = job["frames"] is not None
        found, verdict = many_views.map_many(
            database, folder, photographs, told, one_camera=one_camera
        )
    left_out = {one.name: verdict.left_out.get(one.name) for one in photographs}
    left_out |= dict.fromkeys(plain, "too little texture to be matched")
    left_out = {name: why for name, why in left_out.items() if why}
    if verdict.refused:
        raise PosesRefused(verdict.refused, left_out)
    told("writing", 0, len(verdict.joined))
    written = result.write_scene(work / "result", found, folder, photographs, verdict.joined)
    pairs = match_posed.read_pairs(database, photographs, written.straighten)
    kind, sentence = page.write_page(
        work / "result" / PAGE,
        title=f"Poses of {job['title']}",
        pictures={name: work / "result" / result.IMAGES / name for name in written.cameras},
        cameras=written.cameras,
        pairs=[pair for pair in pairs if written.cameras.keys() >= set(pair.names)],
        notes=verdict.notes,
        left_out=left_out,
    )
    if kind == "wrong":
        raise PosesRefused(f"{judge.DISBELIEF}{sentence}: {judge.ADVICE}", left_out)
    notes = [*verdict.notes, *([sentence] if kind == "doubtful" else [])]
    summary = {"registered": verdict.joined, "left_out": left_out, "notes": notes}
    made_by = {"lvsm_jax": lvsm_jax.__version__, "pycolmap": pycolmap.__version__}
    record = job["record"] | summary | {"made_by": made_by}
    files.write_text(work / "result" / RECORD, json.dumps(record, indent=1, ensure_ascii=False))
    return summary


def _of_two(
    database: pathlib.Path, folder: pathlib.Path, photographs: Sequence[Upright]
) -> tuple[pycolmap.Reconstruction | None, Verdict]:
    two, names = two_views.map_two(database, folder, photographs), [p.name for p in photographs]
    if two.matches < two_views.FEWEST_MATCHES:
        refused = (
            f"{two.matches} points match in {names[0]} and {names[1]}, expected at least "
            f"{two_views.FEWEST_MATCHES}: take them from places nearer to each other"
        )
    elif two.angle < two_views.LEAST_ANGLE:
        refused = (
            f"{names[0]} and {names[1]} are taken from nearly the same place: their rays meet at "
            f"{two.angle:.1f}°, expected at least {two_views.LEAST_ANGLE}°: take a step to the side"
        )
    elif two.planar:
        refused = (
            f"what {names[0]} and {names[1]} have in common lies in a plane, from which the motion "
            "cannot be told: take a third photograph, or show things at several depths"
        )
    else:
        told = "EXIF's" if photographs[0].focal else "a usual"
        notes = [
            f"two photographs: {two.matches} matches, their rays meet at {two.angle:.1f}°; the "
            f"focal length is {two.focal:.2f} times {told} one, and lengths have no unit"
        ]
        if not photographs[0].focal:
            notes.append("a third photograph would tell the focal length: look at the page")
        return two.found, Verdict(names, {}, notes)
    return None, Verdict([], dict.fromkeys(names, "no pose"), [], refused)


def _write_uprights(job: dict[str, Any], folder: pathlib.Path, told: Told) -> list[Upright]:
    named = pictures.name_uprights(map(pathlib.Path, job["photographs"]))
    background = None if job["background"] is None else tuple(job["background"])
    photographs = []
    for i, (name, file) in enumerate(named.items()):
        target = folder / f"{i:05d}.jpg"
        options = {"max_size": job["max_size"], "background": background}
        photographs.append(pictures.write_upright(file, target, name, **options))
        told("photographs", i + 1, len(named))
    return photographs


def _without_texture(database: pathlib.Path, photographs: Sequence[Upright]) -> list[str]:
    opened = pycolmap.Database.open(database)
    counts = [opened.num_keypoints_for_image(i + 1) for i in range(len(photographs))]
    opened.close()
    few = _FEWEST_FEATURES
    return [one.name for one, count in zip(photographs, counts, strict=True) if count < few]
