"""Files that appear whole or not at all, on the local disk and in buckets."""

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from lvsm_jax.common.errors import UserError

HOST = re.sub(r"\W", "_", socket.gethostname())[:40]  # as names of files say it
_WRITER = re.compile(r"\.(?P<host>\w+)-(?P<pid>[0-9]{1,9})-[0-9a-f]{8}\.(tmp|old)$")
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
)
_MAX_JSON = 256 * 2**20  # bytes


def expand(path: epath.PathLike) -> epath.Path:
    """A path on the local disk or in a bucket; a leading `~` is the home directory."""
    return epath.Path(path).expanduser()


@contextlib.contextmanager
def atomic_write(path: epath.PathLike) -> Iterator[str]:
    """Yields a local file name to write to; `path` then appears whole, or not at all on an error.

    In a bucket the file is written on the local disk and copied up under a temporary name.
    """
    path = expand(path)
    temporary = temporary_name(path)
    remote = "://" in os.fspath(path)
    folder = tempfile.mkdtemp() if remote else None
    local = os.path.join(folder, path.name) if folder else os.fspath(temporary)
    try:
        yield local
        with open(local, "rb") as file:
            os.fsync(file.fileno())
        if remote:
            epath.Path(local).copy(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        if folder:
            shutil.rmtree(folder)


def temporary_name(path: epath.PathLike) -> epath.Path:
    """A name beside `path` for what becomes it; it says which process writes."""
    path = expand(path)
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def clear_unfinished(folder: epath.PathLike, name: str | None = None) -> None:
    """Removes what killed processes of this host were writing, all or of a name, and says so.

    What others left, or write just now, stays; of another host, it is named. An export that was to
    be replaced, and was not, gets its name again.
    """
    folder = expand(folder)
    if not folder.is_dir():
        return
    names = "*" if name is None else f"{glob.escape(name)}.*"
    for path in sorted((*folder.glob(f".{names}.tmp"), *folder.glob(f".{names}.old"))):
        if not (writer := _WRITER.search(path.name)):
            logging.warning("%s was perhaps left by a process that was killed", path)
        elif writer["host"] != HOST:
            logging.warning("%s is written, or was left, on %s", path, writer["host"])
        elif not is_alive(int(writer["pid"])):
            final = path.with_name(path.name[1 : writer.start()])
            if path.suffix == ".old" and not final.exists():
                path.rename(final)
                logging.warning("%s is there again: a process was killed as it replaced it", final)
            else:
                path.rmtree() if path.is_dir() else path.unlink()
                logging.warning("removed %s, left by a process that was killed", path)


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this host.

    One that has ended, but that nobody waited for, as happens in containers, does not.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # where there is no /proc, or it is gone meanwhile
        return True
    return state not in ("Z", "X")


def check_new_file(path: epath.PathLike, overwrite: bool) -> None:
    """Raises FileExistsError unless a file may be written there; asked before work is done."""
    path = expand(path)
    if path.is_dir():
        raise FileExistsError(f"{path} exists and is a directory")
    if path.exists() and not overwrite:
        raise already_there(path)


def already_there(path: epath.PathLike) -> FileExistsError:
    """The error of what would be overwritten unasked."""
    message = f"{path} exists; choose another path, or ask to overwrite it (--overwrite)"
    return FileExistsError(message)


def check_parent(path: epath.PathLike) -> None:
    """Raises FileNotFoundError unless the directory is there that a file is to be written to."""
    if not expand(path).parent.is_dir():
        raise FileNotFoundError(f"there is no directory for {path}")


def check_writable(name: str, directory: epath.PathLike) -> None:
    """Raises UserError, naming the argument, unless files can be made in a directory; makes none.

    The directory need not be there; one in a bucket is not looked at.
    """
    if "://" in os.fspath(directory):
        return
    folder = expand(directory)
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))  # of a disk that is full, some bytes may be left
    except OSError as error:
        raise UserError(f"{name}={directory} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def disk_errors_in_a_line(what: str) -> Iterator[None]:
    """Raises UserError, about `what` was to be written, for what a disk refuses in the block.

    TensorStore and Orbax tell it by ValueError and others, with its message inside of their own.
    """
    try:
        yield
    except Exception as error:
        told = f"{error} {error.__cause__} {error.__context__}"
        for reason in map(os.strerror, _DISK_ERRORS):
            if reason in told:
                raise UserError(f"{what} cannot be written: {reason}") from error
        raise


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The JSON object of a file; UserError, which names the file, for anything else."""
    return _object(read_any_json(path), os.fspath(path))


def read_any_json(path: epath.PathLike) -> Any:
    """What a JSON file holds; UserError, which names the file, if it is none or far too large."""
    path = expand(path)
    if path.stat().length > _MAX_JSON:
        raise UserError(f"{path}: more than {_MAX_JSON >> 20} MiB, too large for what it should be")
    return _parse(path.read_bytes(), os.fspath(path))


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object of bytes, which messages call by this name."""
    return _object(_parse(data, name), name)


def _parse(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: also of UTF-8
        raise UserError(f"{name} is not JSON: {error}") from None


def _object(content: Any, name: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{name}: a {type(content).__name__}, expected an object")
    return content


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a small text file atomically."""
    with atomic_write(path) as local, open(local, "w", encoding="utf-8") as file:
        file.write(text)
