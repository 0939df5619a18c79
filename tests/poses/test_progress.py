"""How far the search for cameras is, as its process tells."""

import subprocess
import sys

from lvsm_jax.poses import process

_TELLS = """
import json, sys, time
print(json.dumps({"stage": "mapping", "done": 1, "total": 4}), flush=True)
time.sleep(60)
"""


def test_progress_is_told_again_while_nothing_is_new(monkeypatch):
    """So that who is told can stop a long stage."""
    monkeypatch.setattr(process, "_AGAIN", 0.05)
    worker = subprocess.Popen([sys.executable, "-S", "-c", _TELLS], stdout=subprocess.PIPE)
    try:
        messages = process._messages(worker)
        first, again = next(messages), next(messages)
        assert first == again
        assert (first["stage"], first["done"], first["total"]) == ("mapping", 1, 4)
    finally:
        worker.kill()
        worker.wait()
    assert all(message == first for message in messages)  # they end with the process
    worker.stdout.close()
