"""Rows of metrics are means over their interval, however a run was stopped; and their timing."""

import csv
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from lvsm_jax.common.config import RunConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.programs.training_run import train
from lvsm_jax.training import interval, loop, run_log

TIMES = ("step_seconds", "data_wait_share", "programs")


@pytest.fixture
def config(rooms):
    config = quickstart.get_config()
    config.model.update(num_layers=1, width=16, head_dim=8, remat="none", copy_head=False)
    config.data.update(path=str(rooms), image_height=16)
    config.run.update(num_steps=6, batch_size=8, eval_every=0, image_every=0, layers_every=0)
    config.optimizer.update(warmup_steps=0)
    return config


def rows_of(workdir):
    rows = csv.DictReader((workdir / "metrics.csv").open())
    return {int(row.pop("step")): {k: v for k, v in row.items() if v} for row in rows}


@pytest.mark.slow
def test_rows_are_means_and_those_of_a_resumed_run(config, tmp_path, capsys):
    config.run.update(log_every=1, layers_every=1)
    train(config, tmp_path / "each")
    config.run.update(log_every=3, layers_every=3, checkpoint_every=4)
    train(config, tmp_path / "straight")
    each, straight = rows_of(tmp_path / "each"), rows_of(tmp_path / "straight")
    assert list(each) == list(range(1, 7)) and list(straight) == [3, 6]
    for step, row in straight.items():
        for name in ("loss", "psnr", "grad_norm", "grad_norm/decoder/layer_01"):
            steps = [float(each[step - i][name]) for i in range(3)]
            np.testing.assert_allclose(float(row[name]), np.mean(steps), rtol=1e-5, err_msg=name)
        for name in ("learning_rate", "skipped_steps", "decoder_rms/layer_01"):
            assert row[name] == each[step][name]

    # What is left of a run that was killed after the checkpoint of step 4, inside an interval.
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    train(config, tmp_path / "resumed")
    resumed = rows_of(tmp_path / "resumed")
    assert "resuming from step 4" in capsys.readouterr().out
    for step, row in straight.items():
        row, again = ({k: v for k, v in r.items() if k not in TIMES} for r in (row, resumed[step]))
        assert row == again


@pytest.mark.slow
def test_a_run_whose_steps_are_all_skipped_ends_in_a_line(config, tmp_path):
    config.optimizer.update(clip_norm=1e-12, skip_factor=1.0, skip_after=0)
    config.run.max_skipped_in_a_row = 2
    with pytest.raises(UserError, match=r"2 steps in a row up to step 2 were skipped.*: lower --c"):
        train(config, tmp_path)


def test_a_skipped_step_does_not_count():
    def metrics(loss, norms, skipped):
        return {
            "loss": jnp.float32(loss),
            "norms": jnp.float32(norms),
            "learning_rate": jnp.float32(1),
            "skipped_steps": jnp.int32(skipped),
            "skipped_in_a_row": jnp.int32(skipped),
        }

    sums = interval.add_step(None, metrics(1 / 3, [1, 2], 0), jnp.array([0, 1]))
    sums = interval.add_step(sums, metrics(np.nan, [np.inf, 1], 1), jnp.array([2, 0]))
    recorded = json.loads(json.dumps(interval.to_json(sums)))
    for sums in (sums, interval.from_json(recorded)):  # noqa: B020
        sums = interval.add_step(sums, metrics(0.1, [3, 5], 0), jnp.array([0, 0]))
        means = interval.means(sums)
        assert means["loss"] == (np.float32(1 / 3) + np.float32(0.1)) / np.float32(2)
        assert means["norms"].tolist() == [2, 3.5]
        assert means["replaced_samples"] == 3
        assert means.keys() == {"loss", "norms", "replaced_samples"}
    assert interval.from_json(interval.to_json(None)) is None
    only_skipped = interval.add_step(None, metrics(1, [1], 1), jnp.array([0]))
    assert np.isnan(interval.means(only_skipped)["loss"])


def test_pairs_without_room_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(run_log, "_tensorboard", lambda path: None)
    told, log = [], run_log.RunLog(tmp_path, num_steps=2, start_step=0)
    monkeypatch.setattr(loop.logging, "warning", lambda text, *values: told.append(text % values))
    late = loop.LateMetrics(RunConfig(), log, interval.Clock(step=0))
    for step, lost in ((1, 0.0), (2, 0.25)):
        names = ("loss", "psnr", "grad_norm", "learning_rate", "skipped_steps", "skipped_in_a_row")
        metrics = {name: jnp.float32(0) for name in names} | {"overflow": jnp.float32(lost)}
        sums = interval.add_step(None, metrics, jnp.array([0]))
        late.dispatched(step, metrics | {"stop": jnp.bool_(False)}, sums, programs=1)
    late.fetch()
    log.close()
    rows = rows_of(tmp_path)
    assert [float(row["overflow"]) for row in rows.values()] == [0, 0.25]
    assert len(told) == 1 and "up to step 2 the rasteriser had no room for 0.25 of" in told[0]


def test_time_of_steps_alone_is_counted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    clock = interval.Clock(step=7)
    with clock.aside():
        passes(50)  # compiling
    for _ in range(3):
        with clock.waiting_for_data():
            passes(1)
        passes(3)
    assert clock.lap(10) == {"step_seconds": 4, "data_wait_share": 0.25}
    with clock.aside():
        passes(20)  # evaluating
    passes(6)
    assert clock.lap(12) == {"step_seconds": 3, "data_wait_share": 0}
