"""What can be wrong with a run is told in a line, before work is lost."""

import pytest
from etils import epath

from configs import quickstart
from lvsm_jax.common.config import RunConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.programs import export
from lvsm_jax.training.run_log import _read_rows
from lvsm_jax.training.settings import recorded_config


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a.b": 1}', "\x00", "[" * 10**5])
def test_a_broken_config_json(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        recorded_config(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {"width": "wide"}}'])
def test_an_export_of_a_run_with_another_config(tmp_path, content, capsys):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit, match=r"^error: .*config\.json"):
        export.main([str(tmp_path), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["loss\n1\n", "step,loss\nx,1\n", "step,loss\n1,2\n3"])
def test_a_broken_table_of_metrics(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    if content.endswith("3"):  # a row of which the end is missing has what it has
        assert _read_rows(epath.Path(tmp_path / "metrics.csv"), 9) == {1: {"loss": "2"}, 3: {}}
        return
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        _read_rows(epath.Path(tmp_path / "metrics.csv"), 9)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_integers_beyond_64_bits(number):
    config = quickstart.get_config()
    config.run.seed = 2**63 - 1
    assert section(config, "run", RunConfig).seed == 2**63 - 1
    config.run.seed = number
    with pytest.raises(UserError, match=r"config\.run\.seed has .* expected at most 64 bits"):
        section(config, "run", RunConfig)
