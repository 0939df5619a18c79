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
        patch_size: the model's patch; height and width must be multiples of it.
        num_views: views of a training sample; its cameras define the sample's scene frame.
        num_inputs: how many of them the model sees in training; `eval.num_inputs` in evaluation.
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
    patch_size: int = 8
    num_views: int = 8
    num_inputs: int = 2
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
        _check_choice("camera_normalization", self.camera_normalization, CAMERA_NORMALIZATIONS)
        _check_choice("on_bad_frame", self.on_bad_frame, BAD_FRAME_POLICIES)

    def check_training(self) -> None:
        """Raises ValueError unless training samples can be drawn with these numbers of views.

        Evaluation takes its views from an index and is free of these limits.
        """
        for field in ("num_inputs", "num_targets"):
            if getattr(self, field) > self.num_views:
                raise ValueError(
                    f"data.{field} is {getattr(self, field)}, more than the num_views "
                    f"{self.num_views} of a training sample"
                )
        if self.num_views > self.max_span:
            raise ValueError(
                f"data.num_views {self.num_views} is larger than data.max_span {self.max_span}: "
                "views are drawn from spans of at least num_views frames"
            )


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"data.{field} is {value!r}, expected one of {', '.join(map(repr, choices))}"
        )
