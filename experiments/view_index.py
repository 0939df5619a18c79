"""An evaluation index for few and for many inputs: targets are never an input.

    python -m experiments.view_index data/re10k data/re10k_views.json --inputs 1 2 4 8
    python eval.py ... --config.eval.index=data/re10k_views.json --config.eval.num_inputs=8

With a published index, inputs beyond the two contexts are spread between these, and some of them
may be a target. Here each clip of a split has two contexts at least four fifths of it apart, and
three targets between them that are none of the inputs for any of the numbers given.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.common import module_parser
from input_pipeline.sampling import IndexEntry, evaluation_views
from input_pipeline.storage import SplitReader
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text

COUNTS = (1, 2, 4, 8, 16)
TARGETS = 3  # of a clip


@program
def main(arguments: list[str]) -> None:
    """Writes an index."""
    parser = module_parser("experiments.view_index", __doc__)
    add = parser.add_argument
    add("dataset", type=path, help="directory of a dataset")
    add("output", type=path, help="JSON file to write")
    add("--split", default="test", help="of the dataset (test)")
    add("--inputs", nargs="+", type=int, default=list(COUNTS), metavar="N",
        help=f"what evaluation will take ({' '.join(map(str, COUNTS))})")  # fmt: skip
    add("--seed", type=int, default=0, help="of the draw (0)")
    options = parser.parse_args(arguments)
    if os.path.exists(options.output):
        raise UserError(f"{options.output} is there already")
    entries = make_index(options.dataset, options.split, options.inputs, options.seed)
    write_text(options.output, json.dumps(entries) + "\n")
    print(f"wrote {options.output}: {len(entries)} clips")


def make_index(
    dataset: str | os.PathLike, split: str, counts: Iterable[int], seed: int
) -> dict[str, dict]:
    """The index of all clips of a split, see `choose_views`."""
    scenes, counts = SplitReader(dataset, split).scenes, tuple(counts)
    entries = {}
    clips = zip(scenes.key.tolist(), scenes.num_frames.tolist(), strict=True)
    for place, (key, frames) in enumerate(clips):
        try:
            views = choose_views(frames, counts, [seed, place])
        except ValueError as error:
            raise UserError(f"clip {key}: {error}") from error
        entries[str(key)] = dataclasses.asdict(views)
    return entries


def choose_views(num_frames: int, counts: Iterable[int], seed: Sequence[int]) -> IndexEntry:
    """Contexts at least four fifths of a clip apart, and targets that are never an input.

    Raises:
        UserError: the clip has too few frames for targets beside so many inputs.
    """
    rng = np.random.default_rng(seed)
    span = rng.integers(-(-4 * num_frames // 5), num_frames)
    first = int(rng.integers(num_frames - span))
    contexts = first, int(first + span)
    taken = {
        int(position)
        for count in counts
        for position in evaluation_views(IndexEntry(contexts, (first,)), count).inputs
    }
    free = [position for position in range(first + 1, contexts[1]) if position not in taken]
    if len(free) < TARGETS:
        raise UserError(f"{num_frames} frames leave {len(free)} for targets beside the inputs")
    targets = sorted(rng.choice(free, TARGETS, replace=False).tolist())
    return IndexEntry(contexts, tuple(targets))


if __name__ == "__main__":
    main()
