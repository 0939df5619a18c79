"""One example: the frames of a sample, read, prepared, and placed in the scene frame."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int64

from input_pipeline import preprocess, sampling
from input_pipeline.alpha import alpha_of
from input_pipeline.camera_table import CameraTable
from input_pipeline.orbit import sample_structured
from input_pipeline.overlap import sample_by_overlap
from input_pipeline.preprocess import Crop, FrameError, ImageAndIntrinsics
from input_pipeline.sampling import ViewSample
from input_pipeline.storage import DatasetError, Frame, SplitReader
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.scenes.scene_frame import SceneFrame

Rows = Int64[np.ndarray, " n"]

NO_FRAME = -1  # the position of a target that only fills up, as `lvsm_jax.batch` has it
_MAX_REPLACED = 100  # bad samples in a row after which the dataset is given up


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Loads samples of a split, in images of one height and width. Picklable."""

    reader: SplitReader
    config: DataConfig
    image_shape: tuple[int, int]
    cameras: CameraTable | None = None  # of all frames, where views are drawn by overlap
    first_scene: int = 0  # number of the first clip, where there are other datasets before
    alpha: Alpha | None = None  # how transparent pictures are read, where somebody says
    masked: bool = False  # whether targets have the mask of their object beside them

    @classmethod
    def open(cls, reader: SplitReader, config: DataConfig, row: int) -> "ExampleLoader":
        """A loader of images as wide as those of the clip in this row of the scene table.

        FrameError where none of its frames can be decoded, UserError where the width is not a
        multiple of the patch.
        """
        height, alpha = config.image_height, alpha_of(config.path, config.background)
        width = height if config.square_crop else _width_in_clip(reader, config, row, alpha)
        if width % config.patch_size:
            raise UserError(
                f"images of {config.path} are {width} pixels wide at height {height}: not a "
                f"multiple of patch_size {config.patch_size}"
            )
        return cls(reader, config, (height, width), alpha=alpha)

    def load(
        self,
        row: int,
        views: ViewSample,
        crop: Crop | None = None,
        reframing: sampling.Reframing | None = None,
        *,
        valid: bool = True,
        replaced: int = 0,
    ) -> dict[str, Any]:
        """The arrays of a Batch of one, without the leading axis, as nested dicts.

        The clip is in this row of the scene table; of its frames `crop` is shown, or what the
        published preprocessing keeps. Frames that are neither input nor target lend their cameras
        alone: they are not decoded, and not even read where the inputs define the scene frame.
        FrameError, which names dataset, shard, scene and frame, for one that cannot be used.
        """
        fitted = {"all_views": views.all_views, "input_views": views.inputs, "none": []}
        fitted = np.array(fitted[self.config.camera_normalization], np.int64)
        shown = np.union1d(views.inputs, views.targets)
        positions = np.union1d(shown, fitted)
        indices = (self.reader.scenes.first_frame[row] + positions).tolist()
        c2w = np.empty((len(positions), 4, 4))
        fxfycxcy = np.empty((len(positions), 4), np.float32)
        image_shape = (crop.height, crop.width) if crop else self.image_shape
        images = np.empty((len(positions), *image_shape, 3), np.uint8)
        masks = np.ones((len(positions), *image_shape), bool)
        for slot, frame in enumerate(self._read(indices)):
            with _naming_the_frame(self.reader, indices[slot]):
                c2w[slot] = preprocess.camera_to_world(frame.w2c)
                if positions[slot] in shown:
                    images[slot], fxfycxcy[slot] = self._photograph(frame, crop)
                if self.masked and positions[slot] in views.targets:
                    masks[slot] = preprocess.crop_mask(frame.image, crop or Crop(*image_shape))
        scene_frame = SceneFrame(np.eye(4), 1.0)
        if len(fitted):
            scene_frame = SceneFrame.fit(c2w[np.searchsorted(positions, fitted)])
        if reframing:
            scene_frame = reframing.apply(scene_frame)
        arrays = {"images": images, "c2w": scene_frame.apply(c2w), "fxfycxcy": fxfycxcy}
        arrays["frame"] = positions.astype(np.int32)

        def select(chosen: Int64[np.ndarray, " v"]) -> dict[str, np.ndarray]:
            slots = np.searchsorted(positions, chosen)
            return {name: array[slots] for name, array in arrays.items()}

        example = {"inputs": select(views.inputs), "targets": select(views.targets)}
        if self.masked:
            example["mask"] = masks[np.searchsorted(positions, views.targets)]
        scene = np.int32(self.first_scene + row)
        valid, replaced = np.bool_(valid), np.int32(replaced)
        return example | {"scene": scene, "valid": valid, "replaced": replaced}

    def _read(self, indices: list[int]) -> list[Frame]:
        try:
            return self.reader.frames(indices)
        except DatasetError:
            for index in indices:  # which of them is it?
                with _naming_the_frame(self.reader, index):
                    self.reader.frames([index])
            raise

    def _photograph(self, frame: Frame, crop: Crop | None) -> ImageAndIntrinsics:
        stored = frame.image, frame.normalized_fxfycxcy
        if crop:
            return preprocess.crop_frame(*stored, crop, self.alpha)
        config = self.config
        image, fxfycxcy = preprocess.preprocess_frame(
            *stored, config.image_height, config.square_crop, self.alpha
        )
        if image.shape[:2] != self.image_shape:
            raise FrameError(
                f"it is {image.shape[1]} pixels wide at height {image.shape[0]}, where others of "
                f"the dataset are {self.image_shape[1]}"
            )
        return image, fxfycxcy


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A dataset to train on: its loader, and the rows of the clips that can be used. Picklable."""

    loader: ExampleLoader
    rows: Rows

    def draw_views(self, row: int, num_inputs: int, rng: np.random.Generator) -> ViewSample:
        """Draws a sample's views of the clip in a row, as `data.sampling` says."""
        loader = self.loader
        scenes = loader.reader.scenes
        count = int(scenes.num_frames[row])
        if loader.config.sampling == "random":
            return sampling.sample_random(count, loader.config, num_inputs, rng)
        if loader.cameras is None:
            return sampling.sample_views(count, loader.config, num_inputs, rng)
        cameras = loader.cameras.some(int(scenes.first_frame[row]), count)
        if loader.config.sampling == "structured":
            return sample_structured(cameras, loader.config, num_inputs, rng)
        return sample_by_overlap(cameras, loader.config, num_inputs, rng)


def training_example(
    sources: tuple[Source, ...], seed: int, draw: tuple[int, int, int, np.random.Generator]
) -> dict[str, Any]:
    """Loads views of a clip, and of others instead while frames are bad and that is allowed.

    `seed` is that of `step_choices`. The draw is a step, which of the sources, which of its rows is
    the clip, and the generator of what is the sample's own.
    """
    step, number, choice, rng = draw
    source = sources[number]
    loader, rows = source.loader, source.rows
    config, row = loader.config, int(rows[choice])
    common = sampling.step_choices(config, seed, step)
    for replaced in range(_MAX_REPLACED):
        views = source.draw_views(row, common.num_inputs, rng)
        crop = sampling.sample_crop(loader.image_shape, config, common.aspect_ratio, rng)
        reframing = sampling.sample_reframing(config, rng)  # last: the others stay as without
        try:
            return loader.load(row, views, crop, reframing, replaced=replaced)
        except FrameError as error:
            if config.on_bad_frame == "error":
                raise
            logging.warning("another sample is drawn instead: %s", error)
            row = int(rows[rng.integers(len(rows))])
    raise FrameError(
        f"{_MAX_REPLACED} samples in a row had bad frames; split {config.split!r} of "
        f"{config.path} is unusable"
    )


def evaluation_example(
    loader: ExampleLoader,
    rows: Rows,
    views: tuple[ViewSample, ...],
    crop: Crop | None,
    position: int,
) -> dict[str, Any]:
    """The example at a position of an evaluation; past the end, the last again, not valid.

    All have as many targets as the clip with most: the last again, in frame `NO_FRAME`.
    """
    clip, most = min(position, len(rows) - 1), max(len(clip.targets) for clip in views)
    example = loader.load(int(rows[clip]), views[clip], crop, valid=position < len(rows))
    count = len(views[clip].targets)
    chosen = np.minimum(np.arange(most), count - 1)
    targets = {name: array[chosen] for name, array in example["targets"].items()}
    targets["frame"][count:] = NO_FRAME
    mask = {"mask": example["mask"][chosen]} if "mask" in example else {}
    return example | {"targets": targets} | mask


@contextlib.contextmanager
def _naming_the_frame(reader: SplitReader, index: int) -> Iterator[None]:
    try:
        yield
    except (DatasetError, FrameError) as error:
        raise FrameError(f"{reader.describe(index)}: {error}") from error


def _width_in_clip(reader: SplitReader, config: DataConfig, row: int, alpha: Alpha | None) -> int:
    """Width of the prepared frames of a clip, by the first that can be decoded."""
    first, count = int(reader.scenes.first_frame[row]), int(reader.scenes.num_frames[row])
    for index in range(first, first + count):
        try:
            with _naming_the_frame(reader, index):
                [frame] = reader.frames([index])
                stored = frame.image, frame.normalized_fxfycxcy
                image, _ = preprocess.preprocess_frame(*stored, config.image_height, False, alpha)
                return image.shape[1]
        except FrameError as error:
            reason = error
    raise reason
