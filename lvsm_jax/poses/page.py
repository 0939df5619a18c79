"""One self-contained HTML page that shows whether cameras are right."""

import base64
import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from lvsm_jax.common import files
from lvsm_jax.poses.epipolar import (
    FEWEST_MATCHES,
    RIGHT,
    WRONG,
    PairCheck,
    are_apart,
    check_pair,
    lines_of,
    verdict_on,
)
from lvsm_jax.poses.pairs import Pair
from lvsm_jax.poses.plan import draw_plan
from lvsm_jax.scenes.photograph import PosedCamera

_LINES = 8  # shown in a pair
_SHOWN = 6  # pairs with pictures
_TABLE = 40  # pairs with numbers
_SIDE = 560  # pixels of a picture's longer side in the page


def write_page(
    path: pathlib.Path,
    *,
    title: str,
    pictures: Mapping[str, pathlib.Path],
    cameras: Mapping[str, PosedCamera],
    pairs: Sequence[Pair],
    notes: Sequence[str] = (),
    left_out: Mapping[str, str] = {},
) -> tuple[str, str]:
    """Writes the page; its verdict, as `verdict_on` has it.

    Places of the pairs are in pixels of the cameras' pictures, which may be stored in any size.
    """
    centres = np.stack([camera.c2w[:3, 3] for camera in cameras.values()])
    extent = np.linalg.norm(centres - centres.mean(0), axis=-1).max(initial=0)
    checks = [
        check_pair(pair, *(cameras[name] for name in pair.names))
        for pair in pairs
        if len(pair.places[0]) >= FEWEST_MATCHES
        and are_apart(*(cameras[name] for name in pair.names), extent)
    ]
    checks.sort(key=lambda check: -check.share)
    verdict = verdict_on(checks)
    points = [check.points for check in checks]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lvsm_jax.poses"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("check.html.j2").render(
        title=title,
        verdict=verdict,
        notes=notes,
        left_out=left_out,
        names=list(cameras),
        plan=draw_plan(cameras, np.concatenate(points) if points else np.zeros((0, 3))),
        pairs=[_figure(check, pictures, cameras) for check in _choose(checks)],
        table=[_row(check) for check in checks[:_TABLE]],
        num_pairs=len(checks),
        limits=(RIGHT, WRONG),
    )
    files.write_text(path, html)
    return verdict


def _choose(checks: Sequence[PairCheck]) -> list[PairCheck]:
    """From the worst to the best, evenly."""
    places = np.linspace(0, len(checks) - 1, min(_SHOWN, len(checks))).round().astype(int)
    return [checks[i] for i in places]


def _row(check: PairCheck) -> dict[str, Any]:
    return {
        "names": check.pair.names,
        "matches": len(check.distances),
        "median": check.median,
        "most": float(np.percentile(check.distances, 90)),
        "kind": "right" if check.share <= RIGHT else "wrong" if check.share > WRONG else "doubtful",
    }


def _figure(
    check: PairCheck,
    pictures: Mapping[str, pathlib.Path],
    cameras: Mapping[str, PosedCamera],
) -> dict[str, Any]:
    """Both pictures, and in each some points with the lines that the other's points lie on."""
    some = _spread(check.pair.places[0])
    both = [cameras[name] for name in check.pair.names]
    views = []
    for i, name in enumerate(check.pair.names):
        places = check.pair.places[i][some]
        lines = lines_of(check.pair.places[1 - i][some], both[1 - i], both[i])
        size = both[i].width, both[i].height
        drawn = [
            {"place": place.round(1).tolist(), "ends": _ends(line, *size)}
            for place, line in zip(places, lines, strict=True)
        ]
        views.append({"name": name, "size": size, "uri": _uri(pictures[name]), "lines": drawn})
    distances = check.distances[some].tolist()
    return _row(check) | {"views": views, "distances": distances}


def _spread(places: np.ndarray) -> list[int]:
    """Some places far from each other: always the one farthest from those taken."""
    taken = [int(np.linalg.norm(places - places.mean(0), axis=-1).argmin())]
    nearest = np.linalg.norm(places - places[taken[0]], axis=-1)
    while len(taken) < min(_LINES, len(places)):
        taken.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[taken[-1]], axis=-1))
    return taken


def _ends(line: np.ndarray, width: int, height: int) -> list[float] | None:
    """Where a line enters and leaves the picture, x1, y1, x2, y2; None if it passes it by."""
    a, b, c = line
    ends = []
    if b:
        ends += [(x, -(a * x + c) / b) for x in (0, width)]
    if a:
        ends += [(-(b * y + c) / a, y) for y in (0, height)]
    inside = [(x, y) for x, y in ends if -1e-6 <= x <= width + 1e-6 and -1e-6 <= y <= height + 1e-6]
    if len(inside) < 2:
        return None
    first, last = max(
        itertools.combinations(inside, 2),
        key=lambda two: abs(two[0][0] - two[1][0]) + abs(two[0][1] - two[1][1]),
    )
    return [round(float(value), 1) for value in (*first, *last)]


def _uri(picture: pathlib.Path) -> str:
    with Image.open(picture) as image:
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
