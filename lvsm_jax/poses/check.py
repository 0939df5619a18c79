"""Whether the cameras of a scene fit its photographs, whoever made them."""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.poses.page import write_page
from lvsm_jax.poses.pairs import Pair, load_pairs
from lvsm_jax.poses.process import LOG, MATCHES, Told, check_installed, run_worker
from lvsm_jax.scenes.photograph import Photograph, PosedCamera
from lvsm_jax.scenes.readers import Scene, ScenePhotograph

MOST = 24  # photographs that are looked at
MAX_SIZE = 1000  # pixels of the longer side

_IN_A_ROW = 3  # neighbours overlap, where those evenly spaced may not


@dataclasses.dataclass(frozen=True)
class SceneCheck:
    """What a check said."""

    page: pathlib.Path
    kind: str  # right, doubtful, wrong or unknown
    sentence: str  # why


def check_scene(
    scene: Scene,
    page: str | os.PathLike,
    *,
    most: int = MOST,
    progress: Told | None = None,
) -> SceneCheck:
    """Matches photographs of a scene by their looks, compares with its cameras, writes a page.

    At most so many photographs are looked at: some in a row at places evenly spaced. What lenses
    distort is undone first. UserError for fewer than two photographs, ones that cannot be read, and
    without pycolmap.
    """
    page = pathlib.Path(page).expanduser()
    if most < 2:
        raise UserError(f"photographs={most}, expected at least 2")
    if len(scene.photographs) < 2:
        raise UserError(f"{scene.source} has one photograph: a check needs two at least")
    check_installed()
    chosen = choose(scene.photographs, most)
    with tempfile.TemporaryDirectory() as place:
        work = pathlib.Path(place)
        log = page.with_name(f"{page.name}.log")
        cameras, pairs = match_photographs(chosen, work, log, progress)
        paths = {photograph.name: _file(work, i) for i, photograph in enumerate(chosen)}
        notes = [f"{len(chosen)} of {len(scene.photographs)} photographs were looked at"]
        kind, sentence = write_page(
            page,
            title=f"Cameras of {'/'.join(pathlib.Path(scene.source).parts[-2:])}",
            pictures=paths,
            cameras=cameras,
            pairs=pairs,
            notes=[*notes, *scene.notes],
        )
    return SceneCheck(page, kind, sentence)


def match_photographs(
    photographs: Sequence[ScenePhotograph],
    work: pathlib.Path,
    log: pathlib.Path,
    progress: Told | None = None,
) -> tuple[dict[str, PosedCamera], list[Pair]]:
    """Matches each photograph with each in an empty folder, and what it says goes to `log`.

    Returns the camera of the pixels that were matched, by the photograph's name, and the pairs.
    UserError for photographs that cannot be read.
    """
    cameras, entries = {}, []
    (work / "photographs").mkdir()
    for i, photograph in enumerate(photographs):
        file = _file(work, i)
        camera = cameras[photograph.name] = _write(photograph.load(), file)
        size, focal = [camera.width, camera.height], float(camera.fxfycxcy[:2].mean())
        entries.append({"name": photograph.name, "file": file.name, "size": size, "focal": focal})
    (work / LOG).touch()
    run_worker({"do": "match", "photographs": entries}, work, log, progress)
    return cameras, load_pairs(work / MATCHES)


def _file(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / "photographs" / f"{number:05d}.jpg"


def choose(photographs: Sequence[ScenePhotograph], most: int) -> list[ScenePhotograph]:
    """So many of the photographs, in their order: some in a row at places evenly spaced."""
    if len(photographs) <= most:
        return list(photographs)
    rows = max(1, most // _IN_A_ROW)
    starts = np.linspace(0, len(photographs) - min(_IN_A_ROW, most), rows).round().astype(int)
    places = {int(start) + i for start in starts for i in range(_IN_A_ROW)}
    return [photographs[i] for i in sorted(places)[:most]]


def _write(photograph: Photograph, file: pathlib.Path) -> PosedCamera:
    """Writes a photograph, smaller if it is large; the camera of what is written."""
    image, camera = Image.fromarray(photograph.pixels), photograph.camera
    scale = min(1.0, MAX_SIZE / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    if scale < 1:
        image = image.resize(size, Image.LANCZOS)
    image.save(file, format="JPEG", quality=97, subsampling=0)
    by = np.array([size[0] / camera.width, size[1] / camera.height] * 2)
    return PosedCamera(camera.c2w, camera.fxfycxcy * by, *size)
