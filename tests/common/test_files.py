"""Files appear whole or not at all, and what a kill leaves is found."""

import errno
import os
import subprocess
import sys
import time

import pytest

from lvsm_jax.common import files
from lvsm_jax.common.errors import UserError


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    program = (
        "import os, sys; from lvsm_jax.common import files\n"
        "with files.atomic_write(sys.argv[1]) as local:\n"
        "    open(local, 'w').write('half'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.csv")])
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    (tmp_path / left.name.replace(files.HOST, "elsewhere")).touch()
    (tmp_path / ".b.12345678.tmp").touch()  # of another program
    with files.atomic_write(tmp_path / "now") as local:
        open(local, "w").close()
        files.clear_unfinished(tmp_path, "b")
        assert left.exists()
        files.clear_unfinished(tmp_path)
        assert not left.exists()
        assert os.path.exists(local)  # its process lives
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("there", [False, True])
def test_what_was_to_be_replaced_gets_its_name_again(tmp_path, there):
    dead = subprocess.Popen(["true"])
    dead.wait()
    old = tmp_path / f".export.{files.HOST}-{dead.pid}-12345678.old"
    old.mkdir()
    (old / "config.json").touch()
    if there:
        (tmp_path / "export").mkdir()
    files.clear_unfinished(tmp_path, "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "config.json").exists() != there


@pytest.mark.parametrize("wrap", [OSError, ValueError])
def test_disk_errors_are_told_in_a_line(wrap):
    with pytest.raises(UserError, match="the export x cannot be written: No space left"):
        with files.disk_errors_in_a_line("the export x"):
            raise wrap(f"OUT_OF_RANGE: blocks … {os.strerror(errno.ENOSPC)} [os_error_code='28']")
    with pytest.raises(KeyError), files.disk_errors_in_a_line("the export x"):
        raise KeyError("a bug")


def test_a_file_in_the_place_of_a_folder_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    files.check_writable("OUT", tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"OUT=.*file/out cannot be written"):
        files.check_writable("OUT", tmp_path / "file" / "out")


def test_a_process_that_ended_is_not_alive_even_if_nobody_waits_for_it():
    assert files.is_alive(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout.read() == b""  # until its end
    until = time.monotonic() + 20
    while files.is_alive(ended.pid):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert ended.wait() == 0
