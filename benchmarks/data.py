"""Speed of the training pipeline against bare decoding and resizing, and what it reads.

    python -m benchmarks.data DATASET --output=data.json

Throughput is compared with two bounds, which handle the frames of as many samples, already in
memory, with as many threads as there are cores (Pillow releases Python's lock):

    pillow    decodes and resizes whole frames, as the protocol says
    prepared  is the pipeline's own preparation of a frame, which skips columns to be cropped away

Rounds of all three alternate and medians of rounds and of their ratios are given, for other
programs may disturb the machine. Bytes read are counted by Linux, the opening of shards included.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from input_pipeline.examples import ExampleLoader
from input_pipeline.loading import train_batches
from input_pipeline.preprocess import preprocess_frame
from input_pipeline.sampling import sample_views, usable_clips
from input_pipeline.storage import Frame, SplitReader
from lvsm_jax.batch import Batch
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.files import write_text
from lvsm_jax.scenes.photograph import ResizeCrop, resized_side


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Samples a second of the pipeline and of the two bounds."""

    num_workers: int
    pipeline: float
    pillow: float
    prepared: float
    pipeline_to_pillow: float
    pipeline_to_prepared: float


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes a sample reads, and the size of the JPEGs of all its views and of those decoded."""

    read: float
    views: float
    decoded: float
    read_to_views: float
    read_to_decoded: float


def main() -> None:
    """Prints a table and writes JSON."""
    options = _parse_arguments()
    config = DataConfig(options.dataset, split=options.split, image_height=options.image_height)
    traffic = measure_traffic(config, options.samples)
    throughputs = [
        measure_throughput(
            dataclasses.replace(config, num_workers=num_workers),
            batch_size=options.batch_size,
            num_samples=options.samples,
            rounds=options.rounds,
        )
        for num_workers in options.workers
    ]
    _print_table(throughputs, traffic)
    report = {
        "config": dataclasses.asdict(config),
        "batch_size": options.batch_size,
        "cores": os.cpu_count(),
        "samples_per_second": [dataclasses.asdict(row) for row in throughputs],
        "bytes_per_sample": traffic and dataclasses.asdict(traffic),
    }
    if options.output:
        write_text(options.output, json.dumps(report, indent=2) + "\n")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = functools.partial(parser.add_argument, metavar="N", type=int)
    add("dataset", metavar="DATASET", type=str, help="dataset directory")
    add("--split", metavar="NAME", type=str, default="train", help="default: %(default)s")
    add("--image-height", default=256, help="pixels (default: %(default)s)")
    add("--batch-size", default=8, help="default: %(default)s")
    add("--workers", nargs="+", default=[0, 2], help="processes, 0 for threads (default: 0 2)")
    add("--samples", default=80, help="samples in a round (default: %(default)s)")
    add("--rounds", default=5, help="default: %(default)s")
    add("--output", metavar="FILE", type=pathlib.Path, help="JSON file to write")
    return parser.parse_args()


def measure_throughput(
    config: DataConfig, *, batch_size: int, num_samples: int, rounds: int
) -> Throughput:
    """Alternates rounds of the pipeline and of the bounds."""
    frames = list(_decoded_frames(config, num_samples))
    num_batches = max(1, num_samples // batch_size)
    # Batches made ready while a bound is measured must not count as the pipeline's speed, and
    # making them must not slow the bound down.
    ready = (config.prefetch + 3) * max(1, config.num_workers)
    times = []  # seconds a sample
    batches = train_batches(config, batch_size=batch_size, seed=0)
    for _ in tqdm(range(rounds), f"{config.num_workers} workers", unit="round", file=sys.stderr):
        _draw(batches, ready)
        pipeline = _seconds(lambda: _draw(batches, num_batches)) / (num_batches * batch_size)
        time.sleep(1.5 * ready * batch_size * pipeline)
        bounds = [
            _seconds(functools.partial(_prepare_all, prepare, frames, config)) / num_samples
            for prepare in (_with_pillow, preprocess_frame)
        ]
        times.append((pipeline, *bounds))
    batches.close()
    pipeline, pillow, prepared = np.array(times).T
    return Throughput(
        num_workers=config.num_workers,
        pipeline=1 / statistics.median(pipeline),
        pillow=1 / statistics.median(pillow),
        prepared=1 / statistics.median(prepared),
        pipeline_to_pillow=statistics.median(pillow / pipeline),
        pipeline_to_prepared=statistics.median(prepared / pipeline),
    )


def measure_traffic(config: DataConfig, num_samples: int) -> Traffic | None:
    """Counts what reading samples with freshly opened shards costs; None where it is unknown."""
    counters = pathlib.Path("/proc/self/io")
    if not counters.exists():
        return None

    def bytes_read() -> int:
        return int(dict(line.split(": ") for line in counters.read_text().splitlines())["rchar"])

    list(_decoded_frames(config, 1))  # whatever Python reads to get going
    reader = SplitReader(config.path, config.split)
    samples = list(_samples(reader, config, num_samples))
    loader = ExampleLoader.open(reader, config, samples[0][0])
    before = bytes_read()
    for row, views in tqdm(samples, "bytes read", unit="sample", file=sys.stderr):
        loader.load(row, views)
    read = bytes_read() - before
    views = decoded = 0
    for row, sample in samples:
        sizes = {
            position: len(frame.jpeg)
            for position, frame in zip(
                sample.all_views, _frames(reader, row, sample.all_views), strict=True
            )
        }
        views += sum(sizes.values())
        decoded += sum(sizes[p] for p in {*sample.inputs, *sample.targets})
    return Traffic(
        read / num_samples,
        views / num_samples,
        decoded / num_samples,
        read_to_views=read / views,
        read_to_decoded=read / decoded,
    )


def _samples(reader: SplitReader, config: DataConfig, count: int) -> Iterator[tuple]:
    """Row and views of samples, drawn as in training."""
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(usable_clips(reader.scenes.num_frames, config))
    for row in rng.choice(rows, count):
        yield (
            int(row),
            sample_views(int(reader.scenes.num_frames[row]), config, config.num_inputs, rng),
        )


def _frames(reader: SplitReader, row: int, positions: np.ndarray) -> list[Frame]:
    return reader.frames((reader.scenes.first_frame[row] + positions).tolist())


def _decoded_frames(config: DataConfig, num_samples: int) -> Iterator[Frame]:
    """The frames that so many samples decode."""
    reader = SplitReader(config.path, config.split)
    for row, views in _samples(reader, config, num_samples):
        yield from _frames(reader, row, np.union1d(views.inputs, views.targets))


def _draw(batches: Iterator[Batch], count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass


def _prepare_all(prepare: Callable, frames: Sequence[Frame], config: DataConfig) -> None:
    def one(frame: Frame) -> None:
        prepare(frame.jpeg, frame.normalized_fxfycxcy, config.image_height, config.square_crop)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, frames):
            pass


def _with_pillow(
    jpeg: bytes, normalized_fxfycxcy: np.ndarray, image_height: int, square_crop: bool
) -> np.ndarray:
    del normalized_fxfycxcy
    image = Image.open(io.BytesIO(jpeg))
    width = image_height if square_crop else resized_side(*image.size, image_height)
    cut = ResizeCrop.cover(image.size, image_height, width)
    resized = image.resize(cut.resized, Image.Resampling.LANCZOS)
    return np.asarray(resized.crop(cut.window))


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _print_table(throughputs: Sequence[Throughput], traffic: Traffic | None) -> None:
    columns = ("workers", "samples/s", "pillow", "ratio", "prepared", "ratio")
    print("".join(f"{column:>11}" for column in columns))
    for row in throughputs:
        print(
            f"{row.num_workers:11d}{row.pipeline:11.1f}{row.pillow:11.1f}"
            f"{row.pipeline_to_pillow:11.2f}{row.prepared:11.1f}{row.pipeline_to_prepared:11.2f}"
        )
    if traffic:
        print(
            f"\nbytes read a sample: {traffic.read:,.0f} = {traffic.read_to_views:.3f} × the JPEGs "
            f"of its views = {traffic.read_to_decoded:.3f} × those decoded (the others lend their "
            "cameras to the scene frame)"
        )


if __name__ == "__main__":
    main()
