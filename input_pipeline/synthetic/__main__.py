"""Writes a dataset of procedural worlds, in the format of an imported RealEstate10K.

    lvsm synthetic data/synthetic

These are the worlds that `data.worlds_share` makes while training (docs/worlds.md), for those who
want files. The defaults make a set of small pictures, from which a small transformer learns on a
CPU in minutes: configs/quickstart.py. Two splits, `train` and `test`, share no world; an evaluation
index for `test` lies beside them. Every world depends on the seed and its own number alone, so the
files are the same for any number of devices. An interrupted run goes on where it was when the same
command is given again.

More scenes teach more than more frames: a training sample takes a few frames of one clip.

    lvsm synthetic data/world_objects --rig=gso --train-scenes=256 --test-scenes=16

makes objects instead, as the renders of Google Scanned Objects show them: 64 views on a rig (radius
2.7, elevations 0, 20, 40 and 60°, 16 azimuths, field of view 50°), transparent PNGs, put on white,
z up (docs/objects.md).
"""

import argparse
import sys

from input_pipeline.synthetic.settings import RIGS, SPLITS, Settings
from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.worlds.config import RIG_VIEWS, WorldsConfig

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
    sizes = {name: getattr(given, name) for name in _SIZES}
    if given.rig:
        sizes["frames"] = _frames_of_rig(given)
    settings = Settings(**sizes, rig=given.rig, worlds=worlds)

    # Only now, so that --help comes at once.
    from input_pipeline.synthetic.dataset import SCENES_AT_ONCE, generate
    from lvsm_jax.parallel.mesh import MeshConfig, simulate_cpu_devices

    simulate_cpu_devices(given.cpu_devices, MeshConfig(), SCENES_AT_ONCE)
    written = generate(given.output, settings, given.overwrite)
    counts = ", ".join(f"{split} {settings.num_scenes(split)} clips" for split in SPLITS)
    state = "wrote" if written else "already complete, nothing to do:"
    print(f"{state} {given.output}: {counts} of {settings.frames} frames")
    config = "object_64" if given.rig else "quickstart"
    print(
        "\nTrain on it, on a CPU in minutes:\n"
        f"  lvsm train --config=configs/{config}.py --workdir=runs/{config}"
        f" --config.data.path={given.output}"
    )


def _frames_of_rig(given: argparse.Namespace) -> int:
    """Frames of a clip; UserError for an option that means nothing for objects on a rig."""
    usual = WorldsConfig()
    for name in ("kind_weights", "path_weights", "baseline", "fields_of_view", "samples"):
        if _given(given, name) != getattr(usual, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} means nothing with --rig={given.rig}")
    return RIG_VIEWS if given.frames == Settings().frames else given.frames


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
    text = "objects with transparency, from all 64 views of this rig, instead of worlds on paths"
    parser.add_argument("--rig", choices=RIGS[1:], default="", help=text)
    text = "CPU only: simulated devices; 0 is one for each core. The files do not depend on it"
    parser.add_argument("--cpu-devices", type=int, default=0, metavar="N", help=text)
    # Of version 0.1.0, so that its command lines still work.
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    text = "replace worlds that were made with other settings (otherwise an error)"
    parser.add_argument("--overwrite", action="store_true", help=text)
    return parser


if __name__ == "__main__":
    main()
