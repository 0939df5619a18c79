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
from typing import TYPE_CHECKING, Any

from lvsm_jax.common.command_line import (
    add_config_option,
    argument_parser,
    parse_with_config,
    path,
    program,
)
from lvsm_jax.common.errors import UserError

if TYPE_CHECKING:
    from lvsm_jax.models.base import ModelConfig


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and prints."""
    parser = argument_parser("describe", __doc__)
    parser.add_argument(
        "export", type=path, nargs="?", metavar="EXPORT", help="directory of an export"
    )
    add_config_option(parser, required=False)
    parser.add_argument("--views", type=int, help="input views (the config's data.num_inputs)")
    parser.add_argument("--targets", type=int, help="target views (the config's data.num_targets)")
    parser.add_argument("--height", type=int, help="pixels (the config's data.image_height)")
    parser.add_argument("--width", type=int, help="pixels (the height)")
    parser.add_argument(
        "--json",
        type=path,
        metavar="FILE",
        help="also write the numbers to a file; - prints them alone",
    )
    given, config = parse_with_config(parser, arguments)
    if (config is None) == (given.export is None):
        raise UserError("give either --config=FILE or an EXPORT directory")

    from lvsm_jax.common.config import DataConfig, section  # only now: --help comes at once
    from lvsm_jax.common.files import check_parent, write_text
    from lvsm_jax.cost.model_cost import count_costs, text
    from lvsm_jax.training.train_state import TrainingConfig

    if given.json not in (None, "-"):
        check_parent(given.json)
    if config is None:
        training, (model, data) = None, _of_export(given.export)
    else:
        training = TrainingConfig.of(config)
        model, data = training.model, dataclasses.asdict(section(config, "data", DataConfig))
    description = count_costs(model, training, **_scene(given, data))
    as_json = json.dumps(description, indent=2)
    if given.json == "-":
        print(as_json)
        return
    print(text(description))
    if given.json:
        write_text(given.json, as_json + "\n")
        print(f"\nwrote {given.json}")


def _of_export(path: str) -> "tuple[ModelConfig, dict[str, Any]]":
    """An export's model, and the data that it was trained on as far as it is recorded."""
    from lvsm_jax.common.config import DataConfig
    from lvsm_jax.weights import exports

    recorded = exports.describe(path).get("config") or {}
    default = dataclasses.asdict(DataConfig(path=""))
    return exports.model_config(path), default | recorded.get("data", {})


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
