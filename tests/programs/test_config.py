"""`lvsm config`: every field with its value, its default and what it means."""

import json
import pathlib

import pytest

import lvsm_jax
from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.models.architectures import CONFIGS
from lvsm_jax.programs import config as program

FOLDER = pathlib.Path(lvsm_jax.__file__).parents[1] / "configs"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_field_is_explained(architecture):
    config = read_config_file(f"configs/base.py:{architecture}")
    fields = program.explain(config)
    assert len(fields) > 80 and not any(field.changed for field in fields)
    assert not [f"{f.section}.{f.name}" for f in fields if not f.meaning.endswith((".", ")"))]
    here = config.to_dict()
    there = {(name, f) for name, v in here.items() if isinstance(v, dict) for f in v}
    assert {(field.section, field.name) for field in fields if field.section} == there


def test_changed_fields_are_marked(capsys):
    program.main([str(FOLDER / "re10k_256.py"), "--config.run.seed=5"])
    lines = capsys.readouterr().out.splitlines()
    changed = [line for line in lines if line.startswith("*")]
    assert "* seed = 5 (default: 0)" in changed
    assert "* dtype = 'bfloat16' (default: 'float32')" in changed
    assert "  num_steps = 100000" in lines and max(map(len, lines)) <= 100


def test_forms_for_programs(capsys):
    program.main(["--json"])
    rows = {(row["section"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["run", "num_steps"]["value"] == 100_000
    assert rows["run", "num_steps"]["meaning"] == "steps of the run."
    program.main([str(FOLDER / "re10k_256.py"), "--markdown"])
    told = capsys.readouterr().out
    assert "## `run`" in told and "| `num_steps` | `100000` | steps of the run. |" in told
    assert "| `remat` | `'full'`, default `'none'` |" in told


def test_errors_are_one_line():
    for arguments, message in {
        ("no/such.py",): "there is no config file no/such.py",
        ("configs/base.py:x",): "architecture is 'x'",
        ("--config.run.sed=1",): "lacks a field",
    }.items():
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            program.main(list(arguments))
