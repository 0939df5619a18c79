"""The benchmark of a device: what it writes, and that it can be cut off; no test of speed."""

import argparse
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator
from benchmarks.accelerator import SMALL, Row, draw, measure, measure_row, rows, table
from lvsm_jax.cost.chips import GPUS


def options(tmp_path, **changes) -> argparse.Namespace:
    given = accelerator._parser().parse_args(["--small", f"--output={tmp_path / 'a.json'}"])
    return argparse.Namespace(**{**vars(given), **changes})


def test_rows_go_from_the_most_worth_to_the_least():
    names = [(row.group, row.name) for row in rows(SMALL)]
    assert len(set(names)) == len(names)
    groups = [group for group, _ in names]
    assert groups[:3] == ["peak", "peak", "train"] and groups[-1] == "train"
    assert {"peak", "train", "render", "cache", "worlds"} == set(groups)


def test_a_row_is_compiled_and_timed():
    row = Row("peak", "sum", lambda: (lambda x: x @ x, (jnp.ones((4, 4)),), 128.0))
    found = measure_row(row, 0.001, GPUS["h100"])
    assert found["seconds"] > 0 and found["compile_seconds"] > 0 and found["calls"] >= 1
    assert found["flops_per_second"] == 128.0 / found["seconds"]
    assert found["sum_seconds"] > 0


def test_a_state_goes_from_call_to_call():
    """Its memory is given to the next, as in training."""
    step = lambda state, x: (state + x, {"metric": x})  # noqa: E731
    row = Row("train", "step", lambda: (step, (jnp.zeros(3), jnp.ones(3)), 0.0), True)
    assert measure_row(row, 0.001, None)["calls"] >= 1


def test_each_row_is_written_and_time_ends(tmp_path, monkeypatch):
    def too_large():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of memory")

    some = [
        Row("peak", "matmul", lambda: (jnp.matmul, (jnp.ones((4, 4)),) * 2, 128.0)),
        Row("train", "too large", too_large),
        Row("peak", "copy, bytes", lambda: (lambda x: x + 1, (jnp.ones(4),), 32)),
    ]
    monkeypatch.setattr(accelerator, "rows", lambda sizes: iter(some))
    report = measure(options(tmp_path))
    assert [row.get("left_out") for row in report["rows"]] == [None, "too little memory", None]
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == report["rows"]
    assert "| peak" in table(report) and "too little memory" in table(report)
    assert len(draw(report).axes[0].patches) == 2
    late = measure(options(tmp_path, minutes=-1.0))
    assert {row["left_out"] for row in late["rows"]} == {"no time left"}
    assert "no time left" in table(late)


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(accelerator, "rows", lambda sizes: iter([Row("peak", "x", broken)]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        measure(options(tmp_path))


def test_what_is_measured_in_small_can_be_made():
    prepared = {row.group: row.prepare() for row in rows(SMALL) if row.group in ("cache", "worlds")}
    assert all(callable(function) for function, _, _ in prepared.values())
