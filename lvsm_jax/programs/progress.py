"""Progress of finding poses, on the terminal."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from lvsm_jax.poses import Progress
    from lvsm_jax.poses.process import Told


@contextlib.contextmanager
def bars() -> Iterator["Told"]:
    """What shows a bar for each stage, with the time that it still takes, on stderr."""
    bar: tqdm | None = None

    def told(progress: "Progress") -> None:
        nonlocal bar
        if bar is None or bar.desc != progress.stage:
            if bar is not None:
                bar.close()
            form = "{desc}: {n_fmt}/{total_fmt} {bar} {elapsed}, {remaining} left"
            if not progress.total:
                form = "{desc} …"
            bar = tqdm(total=progress.total or None, bar_format=form, desc=progress.stage)
        bar.n = progress.done
        bar.refresh()

    try:
        yield told
    finally:
        if bar is not None:
            bar.close()
