"""What a dataset of worlds depends on."""

import dataclasses
import json

from lvsm_jax.common.checks import check_at_least, check_choice, check_field
from lvsm_jax.common.errors import UserError
from lvsm_jax.worlds.config import RIG_VIEWS, WorldsConfig

VERSION = 2  # of the pictures: raise it when the same settings come to give others
RIGS = ("", "gso")
SPLITS = ("train", "test")
NUM_TARGETS = 3  # of a clip in the evaluation index, as in the published protocol


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the dataset depends on."""

    train_scenes: int = 1200  # clips of the train split
    test_scenes: int = 64  # clips of the test split
    frames: int = 12  # frames of a clip
    height: int = 64  # of the pictures, in pixels
    width: int = 64  # of the pictures, in pixels
    seed: int = 0  # another seed gives other worlds
    rig: str = ""  # "gso": objects with transparency, from all 64 views of that rig
    worlds: WorldsConfig = dataclasses.field(default_factory=WorldsConfig)  # what they are made of

    def __post_init__(self):
        ones = dict.fromkeys(("train_scenes", "test_scenes", "height", "width"), 1)
        check_at_least("synthetic", self, **ones, frames=NUM_TARGETS + 2, seed=0)
        check_choice("synthetic.rig", self.rig, RIGS)
        fits = not self.rig or self.frames == RIG_VIEWS
        check_field("synthetic", self, "frames", fits, f"{RIG_VIEWS}, the views of the rig")
        if share := self.worlds.moving_share:
            raise UserError(f"worlds.moving_share is {share}, expected 0: datasets have no times")

    def num_scenes(self, split: str) -> int:
        """Clips of a split."""
        return {"train": self.train_scenes, "test": self.test_scenes}[split]

    def to_json(self) -> dict:
        """These settings and the version of the pictures, as they are kept with the data."""
        values = {"version": VERSION, **dataclasses.asdict(self)}
        # Sets of before there were rigs, or worlds that move, stay what they are.
        if not self.rig:
            del values["rig"]
        del values["worlds"]["moving_share"]
        return json.loads(json.dumps(values))
