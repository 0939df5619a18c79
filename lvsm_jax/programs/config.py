r"""Shows every field of a config: its value, its default and what it means.

    lvsm config                                          # the defaults, those of configs/base.py
    lvsm config configs/re10k_256.py                     # fields that differ are marked with *
    lvsm config configs/re10k_256.py --config.data.path=data/re10k
    lvsm config configs/base.py:LVSMDecoderOnly          # of another architecture
    lvsm config --json                                   # or --markdown: for other programs

Where a command takes --config=FILE, each of these fields can be set beside it with
--config.SECTION.FIELD=VALUE:

    lvsm train --config=configs/re10k_256.py --workdir=runs/mine --config.run.batch_size=64 \
        --config.data.path=data/re10k --config.data.aspect_ratios='(1,1.5)'

FILE is a Python file whose `get_config` returns the fields; a copy of one of configs/ is a good
start for your own.
"""

import inspect
import itertools
import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from lvsm_jax.common import command_line
from lvsm_jax.common.command_line import argument_parser, path, program, read_config_file

_BASE = "configs/base.py"

# Fields outside of the sections, which no dataclass explains.
_OUTSIDE = {
    "architecture": "name of the model, see `lvsm_jax.models.architectures`; it decides which "
    "fields `model` has, and configs/base.py:NAME sets it.",
    "init_from": "an export whose weights to start from, also at another image size; empty for "
    "random ones. A run that is resumed does not look at it.",
}


class Field(NamedTuple):
    """A field of a config; its section is empty where it is in none."""

    section: str
    name: str
    value: Any
    default: Any
    meaning: str
    changed: bool


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and prints."""
    parser = argument_parser("config", __doc__)
    parser.add_argument(
        "config", type=path, nargs="?", metavar="FILE", default=_BASE, help=f"({_BASE})"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of all fields as JSON")
    form.add_argument("--markdown", action="store_true", help="print a table for each section")
    given, config = command_line.parse_with_config(parser, arguments)
    fields = explain(config)
    if given.json:
        print(json.dumps([field._asdict() for field in fields], indent=1))
    elif given.markdown:
        print(as_markdown(fields))
    else:
        print(as_text(fields, min(shutil.get_terminal_size().columns, 100)))


def explain(config: ml_collections.ConfigDict) -> list[Field]:
    """All fields of a config, in the order of its dataclasses; others come last, unexplained."""
    values = _by_section(config)
    defaults = _by_section(read_config_file(f"{_BASE}:{config.architecture}"))
    classes = _classes(config.architecture)
    meaning = {"": _OUTSIDE} | {section: meanings(cls) for section, cls in classes.items()}
    fields = []
    for section in [*meaning, *sorted(values.keys() - meaning.keys())]:
        here, usual, told = (each.get(section, {}) for each in (values, defaults, meaning))
        for name in [*(x for x in told if x in here), *sorted(here.keys() - told.keys())]:
            value, default = here[name], usual.get(name)
            changed = value != default
            fields.append(Field(section, name, value, default, told.get(name, ""), changed))
    return fields


def _by_section(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    values = config.to_dict()
    sections = {name: value for name, value in values.items() if isinstance(value, dict)}
    return {"": {name: values[name] for name in values if name not in sections}} | sections


def _classes(architecture: str) -> dict[str, type]:
    """The dataclass whose fields a section has."""
    from lvsm_jax.common.config import DataConfig, EvalConfig, RunConfig
    from lvsm_jax.models.architectures import config_class
    from lvsm_jax.parallel import mesh, processes
    from lvsm_jax.training import losses, optimizer, repa
    from lvsm_jax.worlds.config import WorldsConfig

    return {
        "run": RunConfig,
        "data": DataConfig,
        "worlds": WorldsConfig,
        "model": config_class(architecture),
        "optimizer": optimizer.OptimizerConfig,
        "loss": losses.LossConfig,
        "repa": repa.RepaConfig,
        "eval": EvalConfig,
        "mesh": mesh.MeshConfig,
        "processes": processes.ProcessesConfig,
    }


def meanings(cls: type) -> dict[str, str]:
    """What the `Attributes:` of a dataclass and those that it extends say of each field."""
    found, name = {}, ""
    for each in reversed(cls.__mro__):
        _, _, listed = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for line in listed.splitlines():
            if line and not line.startswith(" "):
                break  # another part of the docstring
            if entry := re.match(r" {4}(\w+): (.*)", line):
                name, found[entry[1]] = entry[1], entry[2]
            elif line:
                found[name] += f" {line.strip()}"
    return found


def as_text(fields: Sequence[Field], width: int) -> str:
    """For a terminal: a line or more each, in sections."""
    lines = []
    for section, group in itertools.groupby(fields, lambda field: field.section):
        lines += ["", section] if section else []
        for field in group:
            mark = "*" if field.changed else " "
            default = f" (default: {_shown(field.default)})" if field.changed else ""
            lines.append(f"{mark} {field.name} = {_shown(field.value)}{default}")
            lines += textwrap.indent(textwrap.fill(field.meaning, width - 6), " " * 6).splitlines()
    return "\n".join(lines)


def as_markdown(fields: Sequence[Field]) -> str:
    """A heading and a table for each section."""
    lines = []
    for section, group in itertools.groupby(fields, lambda field: field.section):
        title = f"`{section}`" if section else "Outside of the sections"
        lines += ["", f"## {title}", "", "| field | value | meaning |", "|---|---|---|"]
        for field in group:
            default = f", default `{_shown(field.default)}`" if field.changed else ""
            meaning = field.meaning.replace("|", "\\|")
            lines.append(f"| `{field.name}` | `{_shown(field.value)}`{default} | {meaning} |")
    return "\n".join(lines).strip()


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
