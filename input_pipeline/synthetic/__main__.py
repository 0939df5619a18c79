"""Writes a dataset of procedural rooms, in the format of an imported RealEstate10K.

    lvsm synthetic data/synthetic

The defaults make the set of the quickstart: small pictures, so that a small transformer learns
from them on a CPU in minutes. Two splits, `train` and `test`, share no room; an evaluation index
for `test` lies beside them. Every scene depends on the seed and its own number alone, so the files
are the same, bit for bit, for any number of workers. An interrupted run goes on where it was when
the same command is given again.

More scenes teach more than more frames: a training sample takes a few frames of one clip. What
makes the views hard to guess is --motion and --turn (how far apart the ends of a clip are) and
--objects (how much hides what lies behind).
"""

import os

from input_pipeline.synthetic.dataset import SPLITS, Settings, generate
from input_pipeline.synthetic.rooms import SceneConfig
from lvsm_jax.common.command_line import argument_parser, path, program

_SIZES = ("train_scenes", "test_scenes", "frames", "height", "width", "seed")
_OPTIONS = {
    "train_scenes": "clips to learn from",
    "test_scenes": "clips held out",
    "frames": "frames of a clip",
    "height": "height of the pictures, in pixels",
    "width": "width of the pictures, in pixels",
    "seed": "another seed gives other rooms",
    "objects": "pieces of furniture in a room",
    "motion": "metres that the camera walks",
    "turn": "radians that the camera turns meanwhile, at most",
    "workers": "processes; the files do not depend on it",
}


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argument_parser("synthetic", __doc__)
    text = "directory to write to, on a disk or in a bucket"
    parser.add_argument("output", metavar="OUTPUT", type=path, help=text)
    defaults = vars(Settings()) | vars(SceneConfig()) | {"workers": os.cpu_count() or 1}
    for name, text in _OPTIONS.items():
        several = isinstance(defaults[name], tuple)
        values = defaults[name] if several else (defaults[name],)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(values[0]),
            nargs=2 if several else None,
            metavar=("MIN", "MAX") if several else "N",
            default=defaults[name],
            help=f"{text} (default: {' '.join(map(str, values))})",
        )
    text = "replace rooms that were made with other settings (otherwise an error)"
    parser.add_argument("--overwrite", action="store_true", help=text)
    given = parser.parse_args(arguments)
    scene = SceneConfig(tuple(given.objects), tuple(given.motion), given.turn)
    settings = Settings(**{name: getattr(given, name) for name in _SIZES}, scene=scene)
    written = generate(given.output, settings, given.workers, given.overwrite)
    counts = ", ".join(f"{split} {settings.num_scenes(split)} clips" for split in SPLITS)
    state = "wrote" if written else "already complete, nothing to do:"
    print(f"{state} {given.output}: {counts} of {settings.frames} frames")
    print(
        "\nTrain on it, on a CPU in minutes:\n"
        "  lvsm train --config=configs/quickstart.py --workdir=runs/quickstart"
        f" --config.data.path={given.output}"
    )


if __name__ == "__main__":
    main()
