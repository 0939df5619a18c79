"""What worlds are made of: the fields of section `worlds` of a config."""

import dataclasses
import math

from lvsm_jax.common.checks import check_at_least, check_field

KINDS = ("room", "clutter", "objects")
PATHS = ("walk", "orbit", "spread", "inside_out")
INPUTS = ("spread", "contiguous", "random")  # on the path, of a training sample
RIG_VIEWS = 64  # of an object, see `rig`
MOST_SOLIDS = 240  # a ray keeps the number of what it met, with the six walls, in eight bits


@dataclasses.dataclass(frozen=True)
class WorldsConfig:
    """What there is to see, from where, and how carefully it is drawn.

    Shares are of scenes, at full complexity. Attributes:
        kind_weights: how often a scene is a furnished room, a cluttered box, a group of objects.
        boxes: solids of this form that a scene has room for. Costs grow with those it has.
        ellipsoids: the same for these.
        cylinders: the same for cylinders and cones.
        bulbs: lamps that a scene has room for; each costs a shadow ray.
        sun_share: scenes with a sun, which shines into rooms through their windows.
        window_share: closed scenes with a window.
        mirror_share: scenes with mirror-like surfaces.
        pane_share: scenes with thin panes of glass.
        bump_share: surfaces that are uneven.
        path_weights: how often cameras walk, orbit a point, stand spread around one, or look
            outwards from about one place.
        baseline: least and greatest length of a path, in shares of its usual length.
        fields_of_view: least and greatest horizontal field of view, in degrees.
        varied_share: scenes whose views differ in their field of view.
        moving_share: bodies (loose solids, pieces of furniture with what lies on them) that slide
            while time goes from 0 to 1. Above 0 each view is of a time of its own, drawn at random,
            which its camera has (`worlds.motion`).
        roll: greatest roll of a camera, in degrees.
        clearance: distance that cameras keep from everything, where they can.
        path_tries: paths drawn for a scene, of which the one with the best views is taken.
        samples: rays of a pixel. Depth is that of one more ray, through the pixel's centre.
        shadows: whether light casts shadows.
        mirrors: whether mirrors and panes show a reflection, by one bounce.
        scenes_at_once: scenes that are rendered together; more than one pays on accelerators.
        rays_at_once: rays of a scene that are followed together; they should fit the cache.
        solids_at_once: solids of a form that a ray is compared with at once: a few on a CPU, all
            on accelerators, whose memory each turn over some of them reads and writes.
        input_weights: in training, how often the inputs of a scene are spread over its path,
            neighbours on it, or any of its views.
        steps_per_world: consecutive steps on the same worlds, each with other inputs and targets;
            where rendering costs as much as training, as on a CPU.
        complexity_steps: in training, worlds grow from simple ones to full complexity over so many
            steps on worlds; 0 for full complexity at once.
    """

    kind_weights: tuple[float, ...] = (0.45, 0.3, 0.25)
    boxes: int = 32
    ellipsoids: int = 8
    cylinders: int = 8
    bulbs: int = 2
    sun_share: float = 0.7
    window_share: float = 0.85
    mirror_share: float = 0.25
    pane_share: float = 0.2
    bump_share: float = 0.5
    path_weights: tuple[float, ...] = (0.4, 0.25, 0.2, 0.15)
    baseline: tuple[float, ...] = (0.35, 1.3)
    fields_of_view: tuple[float, ...] = (35.0, 90.0)
    varied_share: float = 0.25
    moving_share: float = 0.0
    roll: float = 6.0
    clearance: float = 0.25
    path_tries: int = 24
    samples: int = 2
    shadows: bool = True
    mirrors: bool = True
    scenes_at_once: int = 1
    rays_at_once: int = 8192
    solids_at_once: int = 4
    input_weights: tuple[float, ...] = (2.0, 1.0, 1.0)
    steps_per_world: int = 1
    complexity_steps: int = 0

    def __post_init__(self):
        check_at_least(
            "worlds", self, boxes=12, ellipsoids=4, cylinders=4, bulbs=1, path_tries=1, samples=1,
            scenes_at_once=1, rays_at_once=1, solids_at_once=1, clearance=0,
        )  # fmt: skip
        check_at_least("worlds", self, steps_per_world=1, complexity_steps=0)
        weighted = {"kind_weights": KINDS, "path_weights": PATHS, "input_weights": INPUTS}
        for field, names in weighted.items():
            weights = getattr(self, field)
            fits = len(weights) == len(names) and min(weights, default=-1) >= 0
            fits = fits and 0 < sum(weights) < math.inf
            check_field("worlds", self, field, fits, f"weights of {', '.join(names)}, not all 0")
        for field in ("sun", "window", "mirror", "pane", "bump", "varied", "moving"):
            share = f"{field}_share"
            check_field("worlds", self, share, 0 <= getattr(self, share) <= 1, "0 to 1")
        for field, most in (("baseline", 3), ("fields_of_view", 120)):
            ends = getattr(self, field)
            fits = len(ends) == 2 and 0 < ends[0] <= ends[1] <= most
            check_field("worlds", self, field, fits, f"two numbers, 0 < from <= to <= {most}")
        check_field("worlds", self, "roll", 0 <= self.roll <= 45, "0 to 45 degrees")
        check_field("worlds", self, "samples", self.samples <= 16, "at most 16")
        solids = self.boxes + self.ellipsoids + self.cylinders
        fits = solids <= MOST_SOLIDS
        expected = f"at most {MOST_SOLIDS} boxes, ellipsoids and cylinders, not {solids}"
        check_field("worlds", self, "boxes", fits, expected)
