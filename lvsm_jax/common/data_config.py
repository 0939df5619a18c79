"""What the input pipeline is asked for, as plain data."""

import dataclasses
import os

CAMERA_NORMALIZATIONS = ("all_views", "input_views")
BAD_FRAME_POLICIES = ("error", "replace")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is, how frames are prepared and views are drawn.

    Attributes:
        path: dataset directory; a bucket path works too.
        split: name of the split in it.
        image_height: height h of the images, in pixels.
        square_crop: crop the middle h × h pixels; False keeps the full width, which is then
            the multiple of 8 nearest to the frame's aspect ratio.
        aspect_ratios: in training, instead of the square, the widths over heights of which each
            step draws one for all its images, of about image_height² pixels.
        smallest_crop: in training, images are a window of the frame at a random place; each of its
            sides is this share or more of the largest that fits, drawn for each sample. 1 for the
            largest always, 0 for the middle of the frame.
        scale_jitter: in training, camera positions in the scene frame are multiplied by a factor
            that is drawn for each sample, log-uniform from 1 / scale_jitter to scale_jitter; 1 for
            none.
        frame_turn: in training, the scene frame is turned about a random axis by an angle that is
            drawn for each sample, uniform from 0 to this, in degrees; 0 for none.
        patch_size: the model's patch; height and width must be multiples of it.
        num_views: views of a training sample; its cameras define the sample's scene frame.
        num_inputs: how many of them the model sees in training; `eval.num_inputs` in evaluation.
        input_counts: in training, instead of `num_inputs`, the numbers of inputs of which each
            step draws one for all its scenes; one that is listed twice comes twice as often.
        num_targets: views to be rendered in training, drawn from all views, inputs included.
        min_span: smallest distance in frames between the first and last view of a sample.
        max_span: largest distance.
        camera_normalization: cameras that define the scene frame: "all_views" of the sample,
            targets included, as in the published protocol, or the "input_views" alone, as when
            targets come later. In training; `eval.camera_normalization` in evaluation.
        num_workers: processes that prepare batches; 0 for threads of this process.
        prefetch: batches kept ready, for each worker process.
        on_bad_frame: in training, a frame that cannot be decoded is an "error", or the sample is
            counted and replaced by another ("replace"). In evaluation it is always an error.

    Raises:
        ValueError: values that are impossible, or do not go together.
    """

    path: str | os.PathLike
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
    min_span: int = 25
    max_span: int = 192
    camera_normalization: str = "all_views"
    num_workers: int = 0
    prefetch: int = 2
    on_bad_frame: str = "error"

    def __post_init__(self):
        smallest = {
            "image_height": 1,
            "patch_size": 1,
            "num_views": 2,
            "num_inputs": 1,
            "num_targets": 1,
            "min_span": 1,
            "num_workers": 0,
            "prefetch": 1,
        }
        for field, least in smallest.items():
            if getattr(self, field) < least:
                value = getattr(self, field)
                raise ValueError(f"data.{field} is {value}, expected at least {least}")
        if self.image_height % self.patch_size:
            raise ValueError(
                f"data.image_height {self.image_height} is not a multiple of patch_size "
                f"{self.patch_size}"
            )
        if self.min_span > self.max_span:
            raise ValueError(
                f"data.min_span {self.min_span} is larger than max_span {self.max_span}"
            )
        self._check_augmentation()
        _check_choice("camera_normalization", self.camera_normalization, CAMERA_NORMALIZATIONS)
        _check_choice("on_bad_frame", self.on_bad_frame, BAD_FRAME_POLICIES)

    def check_training(self) -> None:
        """Raises ValueError unless training samples can be drawn with these numbers of views.

        Evaluation takes its views from an index and is free of these limits.
        """
        field = "input_counts" if self.input_counts else "num_inputs"
        counts = {field: max(self.possible_inputs), "num_targets": self.num_targets}
        for field, count in counts.items():
            if count > self.num_views:
                raise ValueError(
                    f"data.{field} is {getattr(self, field)}, more than the num_views "
                    f"{self.num_views} of a training sample"
                )
        if self.num_views > self.max_span:
            raise ValueError(
                f"data.num_views {self.num_views} is larger than data.max_span {self.max_span}: "
                "views are drawn from spans of at least num_views frames"
            )

    @property
    def possible_inputs(self) -> tuple[int, ...]:
        """Numbers of inputs that a training step may have."""
        return self.input_counts or (self.num_inputs,)

    def image_shape(self, aspect_ratio: float) -> tuple[int, int]:
        """Height and width, multiples of the patch, of about image_height² pixels."""
        sides = self.image_height / aspect_ratio**0.5, self.image_height * aspect_ratio**0.5
        height, width = (max(1, round(side / self.patch_size)) * self.patch_size for side in sides)
        return height, width

    def _check_augmentation(self) -> None:
        if min(self.possible_inputs) < 1:
            raise ValueError(f"data.input_counts is {self.input_counts}, expected at least 1 each")
        if not all(0 < ratio < float("inf") for ratio in self.aspect_ratios):
            raise ValueError(
                f"data.aspect_ratios is {self.aspect_ratios}, expected positive widths over heights"
            )
        if self.aspect_ratios and not self.square_crop:
            raise ValueError(
                f"data.aspect_ratios {self.aspect_ratios} and data.square_crop=False, the full "
                "width, exclude each other"
            )
        if not 0 <= self.smallest_crop <= 1:
            raise ValueError(f"data.smallest_crop is {self.smallest_crop}, expected 0 to 1")
        if not 1 <= self.scale_jitter < float("inf"):
            raise ValueError(f"data.scale_jitter is {self.scale_jitter}, expected at least 1")
        if not 0 <= self.frame_turn <= 180:
            raise ValueError(f"data.frame_turn is {self.frame_turn}, expected 0 to 180 degrees")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"data.{field} is {value!r}, expected one of {', '.join(map(repr, choices))}"
        )
