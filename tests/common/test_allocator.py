"""Freed memory stays with the process, and the next call need not wait for it."""

import subprocess
import sys

import pytest

# Page faults of ten fillings of 64 MiB, each freed before the next.
_PROGRAM = """
import resource, sys
from lvsm_jax.common.allocator import keep_freed_memory

done = sys.argv[1] == "keep" and keep_freed_memory()
bytearray(b"x") * 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(b"x") * 2**26
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", _PROGRAM, how]
    done, faults = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return done == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
def test_freed_memory_is_not_asked_for_again():
    done, kept = page_faults("keep")
    if not done:
        pytest.skip("another C library")
    assert kept < 100
    assert page_faults("leave")[1] > 1000


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform, monkeypatch):
    from lvsm_jax.common import allocator

    monkeypatch.setattr(sys, "platform", platform)
    assert not allocator.keep_freed_memory()
