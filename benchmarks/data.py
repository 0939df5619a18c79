"""Speed of the training pipeline against bare decoding and resizing, and what it reads.

    python -m benchmarks.data DATASET --output=data.json

Two bounds handle the frames of as many samples, already in memory, with a thread a core:

    pillow    decodes and resizes whole frames, as the protocol says
    prepared  is the pipeline's own preparation of a frame, which skips columns to be cropped away

Medians of rounds and of their ratios; rounds of all three alternate, for other programs may disturb
the machine. Bytes read are counted by Linux, the opening of shards included.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import io
import itertools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.common import Report, benchmark_parser, markdown_table, report_benchmark, timed
from input_pipeline.examples import ExampleLoader
from input_pipeline.loading import train_batches
from input_pipeline.preprocess import preprocess_frame
from input_pipeline.sampling import ViewSample, sample_views, usable_clips
from input_pipeline.storage import Frame, SplitReader
from lvsm_jax.batch import Batch
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.config import DataConfig
from lvsm_jax.scenes.photograph import ResizeCrop, resized_side


@program
def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    report_benchmark(_parser().parse_args(arguments), measure, table)


def measure(options: argparse.Namespace) -> Report:
    """Throughput by number of worker processes, and bytes that are read."""
    config = DataConfig(options.dataset, split=options.split, image_height=options.image_height)
    traffic = measure_traffic(config, options.samples)
    sizes = options.batch_size, options.samples, options.rounds
    configs = [dataclasses.replace(config, num_workers=count) for count in options.workers]
    return {
        "config": dataclasses.asdict(config),
        "batch_size": options.batch_size,
        "cores": os.cpu_count(),
        "samples_per_second": [measure_throughput(own, *sizes) for own in configs],
        "bytes_per_sample": traffic,
    }


def measure_throughput(
    config: DataConfig, batch_size: int, num_samples: int, rounds: int
) -> dict[str, float]:
    """Samples a second of the pipeline and of the two bounds, in rounds that alternate."""
    frames = _decoded_frames(config, num_samples)
    num_batches = max(1, num_samples // batch_size)
    # Batches made ready while a bound is measured must not count as the pipeline's speed, and
    # making them must not slow the bound down.
    ready = (config.prefetch + 3) * max(1, config.num_workers)
    times = []  # seconds a sample
    batches = train_batches(config, batch_size=batch_size, seed=0)
    for _ in tqdm(range(rounds), f"{config.num_workers} workers", unit="round"):
        _draw(batches, ready)
        pipeline = timed(_draw, batches, num_batches)[1] / (num_batches * batch_size)
        time.sleep(1.5 * ready * batch_size * pipeline)
        pillow, prepared = (
            timed(_prepare_all, prepare, frames, config)[1] / num_samples
            for prepare in (_with_pillow, preprocess_frame)
        )
        times.append((pipeline, pillow, prepared))
    batches.close()
    pipeline, pillow, prepared = np.array(times).T
    return {
        "num_workers": config.num_workers,
        "pipeline": 1 / statistics.median(pipeline),
        "pillow": 1 / statistics.median(pillow),
        "prepared": 1 / statistics.median(prepared),
        "pipeline_to_pillow": statistics.median(pillow / pipeline),
        "pipeline_to_prepared": statistics.median(prepared / pipeline),
    }


def measure_traffic(config: DataConfig, num_samples: int) -> dict[str, float] | None:
    """Bytes that a sample reads from shards just opened, against its JPEGs; None if unknown."""
    counters = pathlib.Path("/proc/self/io")
    if not counters.exists():
        return None

    def bytes_read() -> int:
        return int(dict(line.split(": ") for line in counters.read_text().splitlines())["rchar"])

    _decoded_frames(config, 1)  # whatever Python reads to get going
    reader = SplitReader(config.path, config.split)
    samples = list(_samples(reader, config, num_samples))
    loader = ExampleLoader.open(reader, config, samples[0][0])
    before = bytes_read()
    for row, views in tqdm(samples, "bytes read", unit="sample"):
        loader.load(row, views)
    read = bytes_read() - before
    views = decoded = 0
    for row, sample in samples:
        views += sum(len(frame.image) for frame in _frames(reader, row, sample.all_views))
        decoded += sum(len(frame.image) for frame in _decoded(reader, row, sample))
    return {
        "read": read / num_samples,
        "views": views / num_samples,
        "decoded": decoded / num_samples,
        "read_to_views": read / views,
        "read_to_decoded": read / decoded,
    }


def _samples(reader: SplitReader, config: DataConfig, count: int) -> Iterator[tuple]:
    """Row and views of samples, drawn as in training."""
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(usable_clips(reader.scenes.num_frames, config))
    for row in map(int, rng.choice(rows, count)):
        num_frames = int(reader.scenes.num_frames[row])
        yield row, sample_views(num_frames, config, config.num_inputs, rng)


def _frames(reader: SplitReader, row: int, positions: np.ndarray) -> list[Frame]:
    return reader.frames((reader.scenes.first_frame[row] + positions).tolist())


def _decoded(reader: SplitReader, row: int, views: ViewSample) -> list[Frame]:
    return _frames(reader, row, np.union1d(views.inputs, views.targets))


def _decoded_frames(config: DataConfig, num_samples: int) -> list[Frame]:
    """The frames that `num_samples` samples decode."""
    reader = SplitReader(config.path, config.split)
    samples = _samples(reader, config, num_samples)
    return [frame for row, views in samples for frame in _decoded(reader, row, views)]


def _draw(batches: Iterator[Batch], count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass


def _prepare_all(prepare: Callable, frames: Sequence[Frame], config: DataConfig) -> None:
    def one(frame: Frame) -> None:
        prepare(frame.image, frame.normalized_fxfycxcy, config.image_height, config.square_crop)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, frames))


def _with_pillow(jpeg: bytes, _: np.ndarray, image_height: int, square_crop: bool) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg))
    width = image_height if square_crop else resized_side(*image.size, image_height)
    cut = ResizeCrop.cover(image.size, image_height, width)
    resized = image.resize(cut.resized, Image.Resampling.LANCZOS)
    return np.asarray(resized.crop(cut.window))


def table(report: Report) -> str:
    """A row for each number of workers, and bytes that are read."""
    names = ["pipeline", "pillow", "pipeline_to_pillow", "prepared", "pipeline_to_prepared"]
    header = ["workers", "samples/s", "pillow", "ratio", "prepared", "ratio"]
    rows = [
        [row["num_workers"], *(f"{row[name]:.{2 if '_to_' in name else 1}f}" for name in names)]
        for row in report["samples_per_second"]
    ]
    text = markdown_table(header, rows, text=0)
    if traffic := report["bytes_per_sample"]:
        text += (
            "\n\nbytes read a sample: {read:,.0f} = {read_to_views:.3f} × the JPEGs of its views = "
            "{read_to_decoded:.3f} × those decoded (the others lend their cameras to the frame)"
        ).format(**traffic)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("benchmarks.data", __doc__)
    add = functools.partial(parser.add_argument, metavar="N", type=int)
    add("dataset", metavar="DATASET", type=path, help="dataset directory")
    add("--split", metavar="NAME", type=str, default="train", help="of the dataset (train)")
    add("--image-height", default=256, help="pixels (256)")
    add("--batch-size", default=8, help="samples of a batch (8)")
    add("--workers", nargs="+", default=[0, 2], help="processes, 0 for threads (0 2)")
    add("--samples", default=80, help="samples in a round (80)")
    add("--rounds", default=5, help="of which the median counts (5)")
    return parser


if __name__ == "__main__":
    main()
