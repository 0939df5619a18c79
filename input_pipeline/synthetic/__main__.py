"""Writes a dataset of procedural worlds, in the format of an imported RealEstate10K.

    lvsm synthetic data/synthetic

These are the worlds that `data.worlds_share` makes while training (docs/worlds.md), for those who
want files. The defaults make a set of small pictures, from which a small transformer learns on a
CPU in minutes: configs/quickstart.py. Two splits, `train` and `test`, share no world; an evaluation
index for `test` lies beside them. Every world depends on the seed and its own number alone, so the
files are the same for any number of devices. An interrupted run goes on where it was when the same
command is given again.

More scenes teach more than more frames: a training sample takes a few frames of one clip.
"""

import argparse
import sys

from input_pipeline.synthetic.settings import SPLITS, Settings
from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.worlds.config import WorldsConfig

_SIZES = {
    "train_scenes": "clips to learn from",
    "test_scenes": "clips held out",
    "frames": "frames of a clip",
    "height": "height of the pictures, in pixels",
    "width": "width of the pictures, in pixels",
    "seed": "another seed gives other worlds",
}
_OF_WORLDS = {
    "kind_weights": "how often a scene is a furnished room, a cluttered box, a group of objects",
    "path_weights": "how often cameras walk, orbit, stand spread around a point, or look outwards",
    "baseline": "length of a camera's path, in shares of its usual length",
    "fields_of_view": "horizontal fields of view, in degrees",
    "boxes": "boxes that a scene has room for",
    "ellipsoids": "the same for ellipsoids",
    "cylinders": "the same for cylinders and cones",
    "samples": "rays of a pixel",
}


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    given = _parser().parse_args(arguments)
    if given.workers is not None:
        print("note: --workers plays no part: the devices make the worlds", file=sys.stderr)
    worlds = WorldsConfig(**{name: _given(given, name) for name in _OF_WORLDS})
    settings = Settings(**{name: getattr(given, name) for name in _SIZES}, worlds=worlds)

    # Only now, so that --help comes at once.
    from input_pipeline.synthetic.dataset import SCENES_AT_ONCE, generate
    from lvsm_jax.parallel.mesh import MeshConfig, simulate_cpu_devices

    simulate_cpu_devices(given.cpu_devices, MeshConfig(), SCENES_AT_ONCE)
    written = generate(given.output, settings, given.overwrite)
    counts = ", ".join(f"{split} {settings.num_scenes(split)} clips" for split in SPLITS)
    state = "wrote" if written else "already complete, nothing to do:"
    print(f"{state} {given.output}: {counts} of {settings.frames} frames")
    print(
        "\nTrain on it, on a CPU in minutes:\n"
        "  lvsm train --config=configs/quickstart.py --workdir=runs/quickstart"
        f" --config.data.path={given.output}"
    )


def _given(given: argparse.Namespace, name: str) -> int | tuple[float, ...]:
    value = getattr(given, name)
    return tuple(value) if isinstance(value, list) else value


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser("synthetic", __doc__)
    text = "directory to write to, on a disk or in a bucket"
    parser.add_argument("output", metavar="OUTPUT", type=path, help=text)
    defaults = vars(Settings())
    for name, text in (_SIZES | _OF_WORLDS).items():
        default = getattr(defaults["worlds"], name) if name in _OF_WORLDS else defaults[name]
        several = isinstance(default, tuple)
        values = default if several else (default,)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(values[0]),
            nargs=len(values) if several else None,
            metavar="X" if several else "N",
            default=default,
            help=f"{text} (default: {' '.join(map(str, values))})",
        )
    text = "CPU only: simulated devices; 0 is one for each core. The files do not depend on it"
    parser.add_argument("--cpu-devices", type=int, default=0, metavar="N", help=text)
    # Of version 0.1.0, so that its command lines still work.
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    text = "replace worlds that were made with other settings (otherwise an error)"
    parser.add_argument("--overwrite", action="store_true", help=text)
    return parser


if __name__ == "__main__":
    main()
