"""What a training run tells: TensorBoard, a text log, a CSV table, pictures and progress.

All of it lies in the run's directory. Writers come from clu; the table, which clu lacks, is
written by the same interface.
"""

import csv
import io
import logging as stdlib_logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

# TensorFlow, which clu writes TensorBoard files with and nothing is computed with, greets at length
# otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from clu import metric_writers, parameter_overview, periodic_actions
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from lvsm_jax.common.config import flat
from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.common.tree import named_leaves


def log_to_file(path: epath.PathLike) -> None:
    """Logs to a local file besides stderr (a bucket has no appending), and at readable length."""
    logging.set_verbosity(logging.INFO)
    handlers: list[stdlib_logging.Handler] = [logging.get_absl_handler()]
    if not os.fspath(path).startswith(("gs://", "s3://")):
        handlers.append(stdlib_logging.FileHandler(path))
        handlers[-1].setFormatter(logging.PythonFormatter())
        logging.get_absl_logger().addHandler(handlers[-1])
    for handler in handlers:
        handler.addFilter(_is_not_chatter)


def _is_not_chatter(record: stdlib_logging.LogRecord) -> bool:
    """Orbax tells some fifty lines about each checkpoint, TFDS what it reads; warnings stay."""
    chatty = any(name in record.pathname for name in ("orbax", "tensorflow_datasets"))
    return record.levelno > stdlib_logging.INFO or not chatty


class CsvWriter(metric_writers.MetricWriter):
    """Appends scalars to a table with one row a step; columns may join later.

    Rows at or after `start_step` are dropped first: a resumed run writes them again.
    """

    def __init__(self, path: epath.PathLike, start_step: int = 0):
        self._path = epath.Path(path)
        self._rows: dict[int, dict[str, Any]] = {}
        if self._path.exists():
            for row in csv.DictReader(io.StringIO(self._path.read_text())):
                if int(row["step"]) <= start_step:
                    values = {k: v for k, v in row.items() if v and k != "step"}
                    self._rows[int(row["step"])] = values

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds the scalars to the step's row."""
        values = {name: f"{float(value):.7g}" for name, value in scalars.items()}
        self._rows.setdefault(step, {}).update(values)

    def flush(self) -> None:
        """Writes the whole table."""
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, ["step", *columns], lineterminator="\n")
        table.writeheader()
        for step in sorted(self._rows):
            table.writerow({"step": step, **self._rows[step]})
        write_text(self._path, text.getvalue())

    close = flush

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        """A table holds scalars alone."""

    write_images = write_texts = write_histograms = write_audios = write_videos = _ignore
    write_hparams = write_summaries = _ignore


class RunLog:
    """Writes metrics, pictures and progress of a run.

    Args:
        directory: the run's.
        num_steps: steps of the run, for the time left.
        start_step: steps that are done already.
        is_main: False on all processes but the first, which then write nothing.
    """

    def __init__(
        self, directory: epath.PathLike, num_steps: int, start_step: int, *, is_main: bool = True
    ):
        self._images = epath.Path(directory) / "images"
        self._is_main = is_main
        writers: list[metric_writers.MetricWriter] = []
        if is_main:
            self._images.mkdir(parents=True, exist_ok=True)
            writers = [
                metric_writers.LoggingWriter(),
                metric_writers.SummaryWriter(os.fspath(epath.Path(directory) / "tensorboard")),
                CsvWriter(epath.Path(directory) / "metrics.csv", start_step),
            ]
        self._writer = metric_writers.MultiWriter(writers)
        self._report = periodic_actions.ReportProgress(
            num_train_steps=num_steps, every_steps=None, every_secs=20.0
        )

    def start(self, config: Mapping[str, Any], model: Any) -> None:
        """Records the resolved config, and the table of all weights."""
        self._writer.write_hparams(flat(config))
        if self._is_main:
            leaves = {name.replace(".", "/"): leaf for name, leaf in named_leaves(model).items()}
            table = parameter_overview.get_parameter_overview(leaves, include_stats=False)
            logging.info("weights:\n%s", table)

    def progress(self, step: int) -> None:
        """Reports speed and time left now and then."""
        if self._is_main:
            self._report(step)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row of metrics."""
        self._writer.write_scalars(step, dict(values))
        self._writer.flush()

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Writes a picture to TensorBoard and as `images/<name>_<step>.png`."""
        self._writer.write_images(step, {name: image[None]})
        if self._is_main:
            with atomic_write(self._images / f"{name}_{step:07d}.png") as local:
                Image.fromarray(image).save(local, "PNG")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
