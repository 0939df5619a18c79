"""What a killed viewer leaves is found by the next."""

import logging
import os
import subprocess
import sys
import tempfile

import pytest

from lvsm_jax.common.files import HOST
from lvsm_jax.viewer.leftovers import clear_leftovers, make_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_folders_of_killed_viewers_are_removed_and_no_others(folder, caplog):
    mine = make_folder()
    assert mine.parent == folder and mine.stat().st_mode & 0o77 == 0
    left = folder / f"lvsm-viewer-{HOST}-{dead()}-abcd_123"
    elsewhere = folder / f"lvsm-viewer-elsewhere-{dead()}-abcd_123"
    older = folder / "lvsm-viewer-abcd_123"
    others = [folder / f"lvsm-viewer-{HOST}-x-abcd_123", folder / "lvsm-viewer-1", folder / "other"]
    for made in (left, elsewhere, older, *others):
        made.mkdir()
        (made / "0").write_bytes(b"a picture")
    link = folder / f"lvsm-viewer-{HOST}-{dead()}-link_123"
    link.symlink_to(others[-1])
    file = folder / f"lvsm-viewer-{HOST}-{dead()}-file_123"
    file.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        clear_leftovers()
    assert not left.exists()
    for path in (mine, elsewhere / "0", older / "0", *others, link, file):
        assert path.exists(), path
    assert len(caplog.records) == 3
    for path, word in ((left, "is removed"), (elsewhere, "perhaps left"), (older, "perhaps left")):
        [line] = [r.getMessage() for r in caplog.records if str(path) in r.getMessage()]
        assert word in line


def test_what_another_user_made_is_left_alone(folder, caplog, monkeypatch):
    theirs = folder / f"lvsm-viewer-{HOST}-{dead()}-abcd_123"
    theirs.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    clear_leftovers()
    assert theirs.exists() and not caplog.records
