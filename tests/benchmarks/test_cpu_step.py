"""The bench of the CPU's step: the sketch is the same mathematics; no test of speed."""

import pytest

from benchmarks.cpu_step import _parser, check_same, measure, table


@pytest.mark.slow
def test_the_sketch_has_the_loss_and_the_gradient_of_our_step():
    sizes = "--layers=1 --width=16 --head-dim=8 --size=16 --batch=1 --targets=1 --repeats=1"
    report = measure(_parser().parse_args([*sizes.split(), "--remat", "dots"]))
    assert [row["name"] for row in report["rows"]] == ["sketch", "ours, dots"]
    assert all(row["processor_seconds"] > 0 for row in report["rows"])
    assert report["rows"][0]["over_sketch"] == 1
    assert "| ours, dots" in table(report)


def test_another_step_is_told_by_its_name():
    sketch, other = {"loss": 1.0, "grad_norm": 2.0}, {"loss": 1.0, "grad_norm": 2.1}
    with pytest.raises(RuntimeError, match="ours has grad_norm"):
        check_same({"sketch": (None, sketch), "ours": (None, other)})
