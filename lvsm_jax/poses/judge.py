"""The verdict on maps: which is taken, of which photographs, or why none is. NumPy only."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lvsm_jax.poses import gates
from lvsm_jax.poses.gates import Map, Verdict
from lvsm_jax.scenes.readers.scene import some_of

ADVICE = (
    "take more photographs in between, from places a step apart, each showing half or more of what "
    "its neighbour shows"
)

DISBELIEF = "the cameras are not believed: "

Again = Callable[[Map], Sequence[Map]]  # maps by the same method, with other seeds


def choose(
    maps: Sequence[Map],
    names: Sequence[str],
    focal_by_exif: Mapping[str, float | None],
    again: Again,
) -> tuple[Map | None, Verdict]:
    """The map that is taken of those of two methods, with the verdict on it.

    It must have joined most photographs with a lens that can be. Another method that comes so far
    must have come to the same cameras; where none does, the same method with other seeds.
    """
    doubts = {one.method: gates.doubts_of_lenses(one, focal_by_exif) for one in maps}
    sound = [one for one in maps if not doubts[one.method] and _is_most(one.held, names)]
    sound.sort(key=lambda one: -len(one.held))  # of equals the first stays the first
    if not sound:
        return None, _refusal(maps, names, doubts)
    best, *others = sound
    if not others and _mean_points(best) < gates.FEW_POINTS:
        return None, _fragile(best, names)
    others, by = (others, "two ways of mapping") if others else (again(best), "two more seeds")
    joined = set(best.held)
    for other in others:
        joined &= set(gates.compare(best, other).agreed)
    if not others or not _is_most(joined, names):
        return None, _disagreement(best, joined, names, by)
    return best, _acceptance(best, joined, names, by, maps)


def _is_most(joined: Iterable[str], names: Sequence[str]) -> bool:
    return len(set(joined)) >= gates.SHARE * len(names) - 1e-9


def _mean_points(one: Map) -> float:
    return float(np.mean([one.points[name] for name in one.held]))


def _fragile(best: Map, names: Sequence[str]) -> Verdict:
    refused = (
        f"{DISBELIEF}{best.method} mapping alone found them, and "
        f"{_mean_points(best):.0f} points a photograph are few, expected {gates.FEW_POINTS}: "
        f"{ADVICE}"
    )
    return Verdict([], _why_left_out(best, set(best.held), names), [], refused)


def _acceptance(
    best: Map, joined: set[str], names: Sequence[str], by: str, maps: Sequence[Map]
) -> Verdict:
    views = [round(best.lenses[name].field_of_view) for name in joined]
    spread = f"{min(views)}°" if min(views) == max(views) else f"{min(views)}° to {max(views)}°"
    count = round(_mean_points(best))
    agreed = "agree" if by == "two ways of mapping" else "agree with the first"
    notes = [
        f"{len(joined)} of {len(names)} photographs joined by {best.method} mapping, and {by} "
        f"{agreed}: fields of view of {spread}, {count} points a photograph, "
        f"mean reprojection error {best.reprojection:.2f} pixels"
    ]
    if by != "two ways of mapping":
        lacking = [one for one in maps if one is not best]
        joins = f"joined {len(lacking[0].held)}" if lacking else "found nothing"
        notes.append(f"the other way of mapping {joins}: look at the page before you rely on them")
    if count < gates.FEW_POINTS:
        notes.append(
            f"{count} points a photograph are few (under {gates.FEW_POINTS}): look at the page"
        )
    return Verdict(
        [name for name in names if name in joined], _why_left_out(best, joined, names), notes
    )


def _refusal(
    maps: Sequence[Map], names: Sequence[str], doubts: Mapping[str, Sequence[str]]
) -> Verdict:
    """Of the map that came farthest."""
    if not maps:
        reason = f"none of {len(names)} photographs has enough in common with another"
        return Verdict([], dict.fromkeys(names, "no matches"), [], f"{reason}: {ADVICE}")
    best = max(maps, key=lambda one: len(one.held))
    left_out = _why_left_out(best, set(best.held), names)
    if not _is_most(best.held, names):
        refused = (
            f"only {len(best.held)} of {len(names)} photographs join, expected {gates.SHARE:.0%}; "
            f"without a place: {some_of(left_out)}: {ADVICE}"
        )
    else:
        refused = f"{DISBELIEF}they have {some_of(doubts[best.method])}: {ADVICE}"
    return Verdict([], left_out, [], refused)


def _disagreement(best: Map, joined: set[str], names: Sequence[str], by: str) -> Verdict:
    left_out = _why_left_out(best, joined, names)
    return Verdict(
        [],
        left_out,
        [],
        f"{DISBELIEF}{by} agree on {len(joined)} of {len(names)} photographs, "
        f"expected {gates.SHARE:.0%}; doubtful are {some_of(left_out)}: {ADVICE}",
    )


def _why_left_out(best: Map, joined: set[str], names: Sequence[str]) -> dict[str, str]:
    reasons = {}
    for name in names:
        if name in joined:
            continue
        if name not in best.w2c:
            reasons[name] = "did not join: too little in common with the others"
        elif best.points[name] < gates.FEWEST_POINTS:
            reasons[name] = f"joined by {best.points[name]} points alone"
        else:
            reasons[name] = "its place is doubtful: it differs from one mapping to another"
    return reasons
