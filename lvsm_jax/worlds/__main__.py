"""Draws a contact sheet of worlds: a row of views for each scene, or for several beside each other.

    python -m lvsm_jax.worlds sheet.png
    python -m lvsm_jax.worlds sheet.png --config=configs/worlds_64.py --size=256 --kind=room

Without --config worlds are as `WorldsConfig` describes them; with it, as its section `worlds` does.
"""

import dataclasses

from lvsm_jax.common.checks import check_choice
from lvsm_jax.common.command_line import argument_parser, path, program, read_config_file
from lvsm_jax.common.config import section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import atomic_write, check_new_file, check_parent
from lvsm_jax.worlds.config import KINDS, WorldsConfig

_NUMBERS = {
    "scenes": (10, "scenes on the sheet"),
    "views": (3, "views of each"),
    "columns": (2, "scenes beside each other"),
    "size": (128, "height and width of a view, in pixels"),
    "seed": (0, "another seed gives other scenes"),
}


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argument_parser("worlds", __doc__)
    parser.prog = "python -m lvsm_jax.worlds"
    parser.add_argument("output", metavar="OUTPUT.png", type=path, help="picture to write")
    parser.add_argument("--config", metavar="FILE", help="config file with a section `worlds`")
    parser.add_argument("--kind", default="", help=f"one of {', '.join(KINDS)}; default: all")
    parser.add_argument("--complexity", type=float, default=1.0, help="0 to 1 (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture")
    for name, (default, text) in _NUMBERS.items():
        text = f"{text} (default: {default})"
        parser.add_argument(f"--{name}", type=int, metavar="N", default=default, help=text)
    given = parser.parse_args(arguments)
    for name in ("scenes", "views", "columns", "size"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} is {getattr(given, name)}, expected at least 1")
    if given.scenes % given.columns:
        raise UserError(f"--scenes {given.scenes} is not a multiple of --columns {given.columns}")
    if not 0 <= given.complexity <= 1:
        raise UserError(f"--complexity is {given.complexity}, expected 0 to 1")
    check_parent(given.output)
    check_new_file(given.output, given.overwrite)
    config = WorldsConfig()
    if given.config:
        config = section(read_config_file(given.config), "worlds", WorldsConfig)
    if given.kind:
        check_choice("--kind", given.kind, KINDS)
        weights = tuple(float(kind == given.kind) for kind in KINDS)
        config = dataclasses.replace(config, kind_weights=weights)
    sheet = _draw(config, given)
    with atomic_write(given.output) as file:
        sheet.save(file, format="png", optimize=True)
    print(f"wrote {given.output}: {given.scenes} scenes, {given.views} views of each")


def _draw(config: WorldsConfig, given):
    import functools

    import jax
    import numpy as np
    from einops import rearrange
    from PIL import Image

    from lvsm_jax.worlds.generate import make_worlds

    size = {"views": given.views, "height": given.size, "width": given.size}
    make = jax.jit(functools.partial(make_worlds, config=config, **size))
    keys = jax.random.split(jax.random.key(given.seed), given.scenes)
    images = np.asarray(make(keys, complexity=given.complexity).images)
    pattern = "(s columns) n h w c -> (s h) (columns n w) c"
    return Image.fromarray(rearrange(images, pattern, columns=given.columns))


if __name__ == "__main__":
    main()
