"""How long the viewer takes to its first picture."""

import sys

import pytest

from experiments import viewer_start


def test_a_start_of_the_viewer_is_timed(tmp_path):
    work = "import os, pathlib; pathlib.Path(os.environ['LVSM_COMPILATION_CACHE'], 'x').touch()"
    ready = "print('ready: http://localhost', flush=True)"
    seconds, cpu_seconds = viewer_start.time_start(
        [sys.executable, "-c", f"{work}; {ready}"], tmp_path
    )
    assert seconds > 0 and cpu_seconds >= 0 and (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="the viewer did not start"):
        viewer_start.time_start([sys.executable, "-c", "print('error')"], tmp_path)
    starts = [{"start": "cold", "seconds": s, "cpu_seconds": 9.0} for s in (20.0, 30.0, 10.0)]
    starts += [{"start": "warm", "seconds": 4.0, "cpu_seconds": 3.0}]
    text = viewer_start.table({"hardware": "a machine", "jax": "1", "starts": starts})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["cold", "20.0", "9.0"] in rows and ["warm", "4.0", "3.0"] in rows
