"""Logs of a training run: a line of progress, log.txt, metrics.csv, pictures, TensorBoard."""

import csv
import datetime
import io
import logging as python_logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from lvsm_jax.common.config import flat
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.common.text import plain_cell, printable
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.parallel import processes


def log_to(path: epath.PathLike | None) -> None:
    """Sends all that the main process logs to a local file, and warnings to the terminal as well.

    A bucket, which has no appending, gets none. Other processes tell errors alone.
    """
    is_main = processes.is_main()
    terminal = _Terminal(python_logging.WARNING if is_main else python_logging.ERROR)
    terminal.setFormatter(python_logging.Formatter("%(levelname)s: %(message)s"))
    # What fails in Orbax is raised as well, and told then.
    terminal.addFilter(lambda record: "orbax" not in record.pathname)
    handlers: list[python_logging.Handler] = [terminal]
    if is_main and path is not None and "://" not in os.fspath(path):
        handlers.append(python_logging.FileHandler(path))
        handlers[-1].setFormatter(logging.PythonFormatter())
    for handler in handlers:
        handler.addFilter(_is_not_chatter)
    python_logging.basicConfig(handlers=handlers, force=True)
    python_logging.raiseExceptions = False  # where the disk is full, the run's own error says so
    logging.set_verbosity(logging.INFO)


class _Terminal(python_logging.Handler):
    def emit(self, record: python_logging.LogRecord) -> None:
        tqdm.write(printable(self.format(record)), file=sys.stderr)  # above the line of progress


def _is_not_chatter(record: python_logging.LogRecord) -> bool:
    """Drops information of Orbax, some fifty lines a checkpoint, and of TFDS; keeps warnings."""
    chatty = any(name in record.pathname for name in ("orbax", "tensorflow_datasets"))
    return record.levelno > python_logging.INFO or not chatty


def say(text: str) -> None:
    """Prints a line above that of progress, in the main process, and logs it."""
    logging.info("%s", text)
    if processes.is_main():
        tqdm.write(text)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a header line; what a row lacks is left empty, and no text is a formula."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows({name: plain_cell(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def _read_rows(path: epath.Path, last_step: int) -> dict[int, dict[str, str]]:
    """The rows of metrics.csv by step; what comes later, a resumed run writes again."""
    try:
        text = path.read_text() if path.exists() else ""
        return {
            int(row["step"]): {name: x for name, x in row.items() if x and name != "step"}
            for row in csv.DictReader(io.StringIO(text))
            if int(row["step"]) <= last_step
        }
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or move it away") from error


class RunLog:
    """Writes metrics, pictures and progress of a run; only the main process writes."""

    def __init__(self, directory: epath.PathLike, num_steps: int, start_step: int):
        directory = epath.Path(directory)
        self._images, self._csv = directory / "images", directory / "metrics.csv"
        self._num_steps, self._is_main = num_steps, processes.is_main()
        self._tensorboard = None
        if self._is_main:
            self._images.mkdir(parents=True, exist_ok=True)
            self._rows = _read_rows(self._csv, start_step)
            self._tensorboard = _tensorboard(directory / "tensorboard")
        self._on_terminal = self._is_main and sys.stderr.isatty()
        self._progress = tqdm(
            total=num_steps,
            initial=start_step,
            desc="starting",
            bar_format="step {n_fmt}/{total_fmt} · {desc} · {remaining} left",
            disable=not self._on_terminal,
        )

    def start(self, config: Mapping[str, Any], model: Any) -> None:
        """Logs the resolved config and the table of all weights."""
        if not self._is_main:
            return
        if self._tensorboard:
            self._tensorboard.write_hparams(flat(config))
        logging.info("config: %s", "\n".join(f"{k} = {v!r}" for k, v in flat(config).items()))
        leaves = {name.replace(".", "/"): leaf for name, leaf in named_leaves(model).items()}
        table = parameter_overview.get_parameter_overview(leaves, include_stats=False)
        logging.info("weights:\n%s", table)

    def advance(self) -> None:
        """One step more is done."""
        self._progress.update()

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a row of metrics, and shows how far the run is."""
        self.scalars(step, values)
        psnr = f"PSNR {values['psnr']:.2f} dB"
        self._progress.set_description_str(psnr)
        if self._is_main and not self._on_terminal:
            seconds = round((self._num_steps - step) * values["step_seconds"])
            left = datetime.timedelta(seconds=seconds)
            print(f"step {step}/{self._num_steps} · {psnr} · {left} left", flush=True)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds to a row of metrics; columns may join later."""
        logging.info("step %d: %s", step, ", ".join(f"{k} {v:.5g}" for k, v in values.items()))
        if self._is_main:
            row = self._rows.setdefault(step, {})
            row |= {name: f"{float(value):.7g}" for name, value in values.items()}
            columns = dict.fromkeys(name for row in self._rows.values() for name in row)
            rows = [{"step": step, **row} for step, row in sorted(self._rows.items())]
            write_text(self._csv, csv_text(["step", *columns], rows))
        if self._tensorboard:
            self._tensorboard.write_scalars(step, dict(values))
            self._tensorboard.flush()

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Writes a picture as `images/<name>_<step>.png` and to TensorBoard."""
        if self._is_main:
            with atomic_write(self._images / f"{name}_{step:07d}.png") as local:
                Image.fromarray(image).save(local, "PNG")
        if self._tensorboard:
            self._tensorboard.write_images(step, {name: image[None]})

    def close(self) -> None:
        """Ends the line of progress, and writes what is left."""
        self._progress.close()
        if self._tensorboard:
            self._tensorboard.close()


def _tensorboard(directory: epath.Path) -> Any:
    """The writer of clu for TensorBoard, or None without TensorFlow (the extra `tensorboard`)."""
    # TensorFlow, which computes nothing here, greets at length otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        from clu import metric_writers
    except ImportError:
        logging.info("no files for TensorBoard: pip install 'lvsm_jax[tensorboard]' brings them")
        return None
    return metric_writers.SummaryWriter(os.fspath(directory))
