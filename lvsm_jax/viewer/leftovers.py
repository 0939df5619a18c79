"""Folders for what visitors upload, and what killed viewers left of them.

They are in the folder for temporary files, which others may write to as well: only folders of ours
are looked at.
"""

import logging
import os
import pathlib
import re
import shutil
import stat
import tempfile

from lvsm_jax.common.files import HOST, is_alive

_log = logging.getLogger(__name__)

_PREFIX = "lvsm-viewer-"
# mkdtemp puts eight letters, digits or underscores at the end.
_NAME = re.compile(rf"{_PREFIX}((?P<host>\w+)-(?P<pid>[0-9]{{1,9}})-)?[a-z0-9_]{{8}}")


def make_folder() -> pathlib.Path:
    """A new folder that only this user can look into; its name says which process it is of."""
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{HOST}-{os.getpid()}-"))


def clear_leftovers() -> None:
    """Removes folders of viewers of this user and host that were killed, and says so.

    Those that may be of another host, or of a viewer that did not say which it is, are named.
    """
    for path in sorted(pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        if not (name := _NAME.fullmatch(path.name)) or not _is_ours(path):
            continue
        if name["host"] != HOST:
            _log.warning("%s was perhaps left by a viewer that was killed", path)
        elif not is_alive(int(name["pid"])):
            shutil.rmtree(path, ignore_errors=True)
            state = "could not be removed" if path.exists() else "is removed"
            _log.warning("%s, left by a viewer that was killed, %s", path, state)


def _is_ours(path: pathlib.Path) -> bool:
    """Whether it is a folder, and no link to one, of the user who runs this."""
    try:
        found = path.lstat()
    except OSError:  # gone meanwhile
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
