"""What programs share that compare exports on the evaluation of a config."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

import ml_collections

import lvsm_jax
from benchmarks.common import benchmark_parser
from lvsm_jax.common.command_line import add_config_option, path
from lvsm_jax.common.config import DataConfig, section
from lvsm_jax.models.base import ViewSynthesisModel


def exports_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The parser of a program whose arguments are exports and a config file."""
    parser = benchmark_parser(f"experiments.{name}", doc)
    add = parser.add_argument
    add("exports", nargs="+", type=path, metavar="EXPORT", help="directory of an export")
    add_config_option(parser)
    return parser


def load_models(
    exports: Sequence[str], config: ml_collections.ConfigDict
) -> Iterator[tuple[str, ViewSynthesisModel, DataConfig]]:
    """Each export with its model, and the config's data for the patches of the model."""
    data = section(config, "data", DataConfig)
    for export in exports:
        model = lvsm_jax.load(export)
        yield export, model, dataclasses.replace(data, patch_size=model.config.patch_size)
