"""Says what a model costs: parameters, multiply-accumulates and bytes.

    lvsm describe --config=configs/re10k_256.py
    lvsm describe --config=configs/re10k_256.py --views=6 --targets=7
    lvsm describe --config=configs/base.py:LVSMDecoderOnly --config.model.num_layers=6
    lvsm describe runs/quickstart/export --height=128 --json=costs.json

The model is that of a config file, whose fields can be set with --config.SECTION.FIELD=VALUE as for
lvsm train, or that of an export. All is counted from sizes and shapes, for one scene: no weights
are made or read, and any machine gives the same numbers.

G is 1e9, M and MB are 1e6. A multiply-accumulate is two FLOPs, and the backward pass counts twice
the forward pass; published tables tend to call multiply-accumulates FLOPS and to leave out
attention. Kept for the backward pass is what training holds of a scene between the two passes,
under model.remat and model.attention; for the latter's default it is what fused kernels keep where
the number of tokens suits them (multiples of 128), else what the plain one keeps.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from lvsm_jax.common import command_line
from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and prints."""
    parser = argument_parser("describe", __doc__)
    parser.add_argument("export", type=path, nargs="?", metavar="EXPORT", help="an export")
    command_line.add_config_option(parser, required=False)
    parser.add_argument("--views", type=int, help="input views (the config's data.num_inputs)")
    parser.add_argument("--targets", type=int, help="target views (the config's data.num_targets)")
    parser.add_argument("--height", type=int, help="pixels (the config's data.image_height)")
    parser.add_argument("--width", type=int, help="pixels (the height)")
    parser.add_argument(
        "--json",
        type=path,
        metavar="FILE",
        help="also write the numbers there; - prints them alone",
    )
    given, config = command_line.parse_with_config(parser, arguments)
    if (config is None) == (given.export is None):
        raise UserError("give either --config=FILE or an EXPORT directory")

    from lvsm_jax.common.config import DataConfig, section  # only now: --help comes at once
    from lvsm_jax.common.files import check_parent, write_text
    from lvsm_jax.cost.model_cost import count_costs, text
    from lvsm_jax.training.train_state import TrainingConfig
    from lvsm_jax.weights import exports

    file = None if given.json == "-" else given.json
    if file:
        check_parent(file)
    if config is None:
        training, model = None, exports.model_config(given.export)
        recorded = exports.describe(given.export).get("config") or {}
        data = dataclasses.asdict(DataConfig(path="")) | recorded.get("data", {})
    else:
        training = TrainingConfig.of(config)
        model, data = training.model, dataclasses.asdict(section(config, "data", DataConfig))
    description = count_costs(model, training, **_scene(given, data))
    as_json = json.dumps(description, indent=2)
    print(as_json if given.json == "-" else text(description))
    if file:
        write_text(file, as_json + "\n")
        print(f"\nwrote {file}")


def _scene(given: argparse.Namespace, data: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of views and size: those given, else those of the config's section `data`."""
    height = data["image_height"] if given.height is None else given.height
    if given.width is None and not data["square_crop"]:
        raise UserError("with data.square_crop=False the frames decide the width: give --width")
    most_inputs = max(data["input_counts"], default=data["num_inputs"])
    return {
        "views": most_inputs if given.views is None else given.views,
        "targets": data["num_targets"] if given.targets is None else given.targets,
        "height": height,
        "width": height if given.width is None else given.width,
    }
