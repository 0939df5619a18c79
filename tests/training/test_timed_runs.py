"""Runs of a model that takes times: only where all of its batches have some."""

import pytest

from experiments.configs import time_arms
from lvsm_jax.common.errors import UserError
from lvsm_jax.training.settings import Settings, check_start


@pytest.mark.parametrize(
    "field, value",
    [("worlds.moving_share", 0.0), ("data.worlds_share", 0.5), ("eval.worlds", 0)],
)
def test_batches_without_times_are_refused_before_the_first(tmp_path, field, value):
    config = time_arms.get_config("timed")
    config.run.eval_every = 100
    config.data.path = "data/somewhere"
    check_start(Settings.of(config), tmp_path)
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=f"model.time_channel takes times, .*: {field} has to be"):
        check_start(Settings.of(config), tmp_path)
    config.model.time_channel = False
    check_start(Settings.of(config), tmp_path)
