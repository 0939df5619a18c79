"""Photographs that visitors upload, with a pose file. Nothing of them is trusted.

A visitor sends `cameras.json` and then its pictures one by one, or all in one zip archive, there
also with a file of cameras of another program; or an archive of pictures alone, whose cameras are
to be found. Names in them choose a pose and label a
photograph, never a file: on the disk uploads have names of ours, in a folder that is deleted when
the visitor leaves. Each picture is decoded once, as a check.
"""

import dataclasses
import io
import itertools
import os
import pathlib
import re
import shutil
import threading
import zipfile
from collections.abc import Collection, Iterator

from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import parse_json
from lvsm_jax.scenes.camera_json import camera_of, frames_of
from lvsm_jax.scenes.photograph import Photograph, PosedCamera
from lvsm_jax.scenes.pictures import PICTURE_ERRORS
from lvsm_jax.scenes.readers import ScenePhotograph, read_scene
from lvsm_jax.viewer.camera_files import CameraFile, find_camera_file
from lvsm_jax.viewer.leftovers import make_folder

_MAX_POSES_BYTES = 4 * 2**20
_MAX_POSES = 10_000  # of one visitor
_MAX_MEMBERS = 1000  # of an archive, also those that are no photographs
_MEMBER = b"PK\x01\x02"  # begins each file's entry in an archive's directory
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may take gigabytes to unpack
# Pictures of which cameras are found, by Pillow's names of their formats.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
_CAMERA_FILE = "camera-file.json"  # ours, of other programs' cameras
_ODD = re.compile(r"[^\w ./()+,=@-]")
_decoding = threading.Lock()  # one picture at a time, since each may take much memory


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much one visitor may upload."""

    bytes: int = 64 * 2**20  # of a file, and of all photographs together, as sent and as unpacked
    photographs: int = 100  # their number
    pixels: int = 40_000_000  # of a photograph


class NoPosesError(UserError):
    """Photographs none of which has a pose: `receive_unposed` takes them."""


@dataclasses.dataclass(frozen=True)
class Unposed:
    """Photographs without cameras, in a folder of nothing else."""

    folder: pathlib.Path
    names: dict[str, str]  # what the visitor calls each file of the folder

    def in_their_words(self, text: str, *folders: pathlib.Path) -> str:
        """A message with the visitor's names of files, and without those of our folders."""
        for ours in (*folders, self.folder):
            text = text.replace(f"{ours}/", "").replace(str(ours), "the photographs")
        for ours, theirs in self.names.items():
            text = text.replace(ours, theirs).replace(ours.rpartition(".")[0], theirs)
        return text


class Uploads:
    """What one visitor has uploaded, in a temporary folder until `close`."""

    def __init__(self, limits: Limits):
        self._limits, self._most = limits, _mebibytes(limits.bytes)
        self._folder: pathlib.Path | None = None
        self._poses: dict[str, PosedCamera] = {}
        self._numbers = itertools.count()
        self._bytes = self._count = 0
        self._lock = threading.Lock()
        self._closed = False

    def receive(self, name: str, content: bytes) -> list[ScenePhotograph]:
        """Takes poses, a picture of one of them, or an archive of both; returns its photographs.

        Of an archive all are taken or, if one cannot be used, none: the UserError says what is
        wrong with the file, or which limit it exceeds. NoPosesError for several photographs without
        cameras.
        """
        with self._lock:
            if self._closed:
                raise UserError("the visitor has left")
            if len(content) > self._limits.bytes:
                raise UserError(f"{name} is larger than {self._most}")
            before = self._poses, self._bytes, self._count
            photographs: list[ScenePhotograph] = []
            try:
                members = list(self._members(name, content))
                if (cameras := find_camera_file(members, _MAX_POSES_BYTES)) is not None:
                    return self._of_other_program(cameras, members)
                members.sort(key=lambda member: not _is_poses(member[0]))  # poses come first
                if len(members) > 1 and not any(self._has_pose(member) for member, _ in members):
                    raise NoPosesError(f"{name} has no cameras.json, nor pictures of one")
                for member, data in members:
                    if _is_poses(member):
                        self._poses = self._poses | _read_poses(member, data)
                        if len(self._poses) > _MAX_POSES:
                            raise UserError(f"more than {_MAX_POSES} poses of one visitor")
                    else:
                        photographs.append(self._photograph(member, data))
                return photographs
            except BaseException:
                self._poses, self._bytes, self._count = before
                for photograph in photographs:
                    pathlib.Path(photograph.source).unlink(missing_ok=True)
                raise

    def receive_unposed(self, name: str, content: bytes) -> Unposed:
        """Takes an archive of photographs without cameras: all, or none with a UserError."""
        with self._lock:
            if self._closed:
                raise UserError("the visitor has left")
            before, folder = (self._bytes, self._count), self._new_folder()
            names: dict[str, str] = {}
            try:
                for member, data in self._members(name, content):
                    self._count_in(len(data))
                    suffix = self._suffix(member, data)
                    file = folder / f"photograph-{len(names) + 1:03d}{suffix}"
                    file.write_bytes(data)
                    again = list(names.values()).count(member)  # an archive may repeat a name
                    names[file.name] = f"{member} ({again + 1})" if again else member
                return Unposed(folder, names)
            except BaseException:
                self._bytes, self._count = before
                shutil.rmtree(folder)
                raise

    @property
    def poses(self) -> int:
        """Number of poses, with and without their picture."""
        return len(self._poses)

    def close(self) -> None:
        """Deletes all that was uploaded."""
        with self._lock:
            self._closed = True
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _members(self, name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
        """The files of an archive, or the one file itself."""
        if not zipfile.is_zipfile(io.BytesIO(content)):
            yield _plain(name), content
            return
        # Counted before `zipfile` makes an object of each, which takes long.
        if content.count(_MEMBER) > _MAX_MEMBERS:
            raise UserError(f"{name} has more than {_MAX_MEMBERS} files")
        left = self._limits.bytes
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [member.filename for member in archive.infolist()]
                if not all(names) or not names:  # of none, what says how many is damaged
                    raise UserError(f"{name}: an archive without files, or with one without a name")
                for member in archive.infolist():
                    base = member.filename.rpartition("/")[2]
                    if not base or base.startswith(".") or member.filename.startswith("__MACOSX/"):
                        continue  # a folder, or what macOS puts beside each file
                    if member.compress_type not in _METHODS:
                        raise UserError(f"{name}: files must be deflated or stored")
                    with archive.open(member) as file:
                        # The sizes that the archive declares are not trusted.
                        data = file.read(left + 1)
                    left -= len(data)
                    if left < 0:
                        raise UserError(f"{name} has more than {self._most} when unpacked")
                    yield _plain(member.filename), data
        except UserError:
            raise
        # Damaged archives, whose numbers may lead anywhere, and encryption.
        except Exception as error:
            raise UserError(f"{name}: no archive that can be read: {error}") from error

    def _photograph(self, name: str, data: bytes) -> ScenePhotograph:
        frame = self._frame(name)
        self._count_in(len(data))
        file = self._root() / str(next(self._numbers))
        file.write_bytes(data)
        try:
            with _decoding:
                Photograph.open(file, self._poses[frame], max_pixels=self._limits.pixels)
        except ValueError as error:
            file.unlink()
            # The visitor knows it by another name.
            raise UserError(str(error).replace(os.fspath(file), name)) from None
        return ScenePhotograph(frame, self._poses[frame], file)

    def _of_other_program(
        self, cameras: CameraFile, members: list[tuple[str, bytes]]
    ) -> list[ScenePhotograph]:
        """The photographs of an archive with another program's cameras: all, or a UserError."""
        if len(frames := cameras.content["frames"]) > _MAX_POSES:
            raise UserError(f"{cameras.name} has more than {_MAX_POSES} poses")
        if len(members) == 1:
            raise UserError(f"{cameras.name}: drop it together with its pictures, at once")
        numbers = {_plain(cameras.picture(i)): i for i in range(len(frames))}
        if len(numbers) < len(frames):
            raise UserError(f"{cameras.name} has several poses of one picture")
        folder = self._new_folder()
        names, ours = {_CAMERA_FILE: cameras.name}, {}
        told = Unposed(folder, names)
        try:
            for member, data in members:
                if member == cameras.name:
                    continue
                frame = _frame_of(member, numbers)
                self._count_in(len(data))
                file = f"photograph-{len(names):03d}{self._suffix(member, data)}"
                if (number := numbers[frame]) in ours:
                    raise UserError(f"{member} and {names[ours[number]]} are both of {frame}")
                (folder / file).write_bytes(data)
                names[file], ours[number] = member, file
            (folder / _CAMERA_FILE).write_bytes(cameras.named(ours))
            result = []
            for photograph in read_scene(folder / _CAMERA_FILE, images=folder).photographs:
                with _decoding:
                    Photograph.open(photograph.source, photograph.camera)
                result.append(dataclasses.replace(photograph, name=names[photograph.name]))
            return result
        except BaseException as error:
            shutil.rmtree(folder)
            if isinstance(error, UserError):
                raise UserError(told.in_their_words(str(error))) from None
            raise

    def _suffix(self, name: str, data: bytes) -> str:
        """The suffix of a picture's file; UserError for what is none, or has too many pixels."""
        try:
            with Image.open(io.BytesIO(data), formats=list(_SUFFIXES)) as picture:
                size, kind = picture.size, picture.format
        except (Image.UnidentifiedImageError, Image.DecompressionBombError):
            raise UserError(f"{name}: not a picture ({', '.join(_SUFFIXES)})") from None
        except PICTURE_ERRORS as error:
            raise UserError(f"{name}: {error}") from error
        if size[0] * size[1] > self._limits.pixels:
            most = f"{self._limits.pixels} that are allowed"
            raise UserError(f"{name}: {size[0]}×{size[1]} pixels are more than the {most}")
        return _SUFFIXES[kind]

    def _count_in(self, size: int) -> None:
        """Counts a photograph of so many bytes; UserError beyond the limits."""
        self._bytes += size
        self._count += 1
        if self._count > self._limits.photographs:
            raise UserError(f"more than {self._limits.photographs} photographs of one visitor")
        if self._bytes > self._limits.bytes:
            raise UserError(f"photographs of one visitor have more than {self._most}")

    def _root(self) -> pathlib.Path:
        if self._folder is None:
            self._folder = make_folder()
        return self._folder

    def _new_folder(self) -> pathlib.Path:
        folder = self._root() / str(next(self._numbers))
        folder.mkdir()
        return folder

    def _has_pose(self, name: str) -> bool:
        """Whether a file is poses, or may be a picture of one."""
        base = "/" + name.rpartition("/")[2]
        return _is_poses(name) or any(f"/{frame}".endswith(base) for frame in self._poses)

    def _frame(self, name: str) -> str:
        """The one pose that belongs to a picture of this name."""
        if not self._poses:
            several = "several photographs at once, to have their cameras found"
            raise UserError(f"{name} has no pose: upload its cameras.json first, or {several}")
        return _frame_of(name, self._poses)


def _frame_of(name: str, frames: Collection[str]) -> str:
    """The one frame that has a picture's name: the whole of it, else the last part.

    Frames may lack the suffix. UserError where none has, or several have.
    """
    stem = name[: -len(suffix)] if (suffix := pathlib.PurePath(name).suffix) else name
    ends = [f"/{name}", f"/{stem}"]
    found = [frame for frame in frames if any(end.endswith(f"/{frame}") for end in ends)]
    if found:
        return max(found, key=len)
    bases = tuple("/" + end.rpartition("/")[2] for end in ends)
    found = [frame for frame in frames if f"/{frame}".endswith(bases)]
    if len(found) != 1:
        raise UserError(
            f"{name} has {len(found) or 'no'} poses among the {len(frames)} uploaded, "
            "expected one whose file has its name"
        )
    return found[0]


def _read_poses(name: str, data: bytes) -> dict[str, PosedCamera]:
    """Cameras by the name of their picture, from the content of a `cameras.json`."""
    if len(data) > _MAX_POSES_BYTES:
        raise UserError(f"{name} is larger than {_mebibytes(_MAX_POSES_BYTES)}")
    poses, frames = {}, frames_of(parse_json(data, name), name)
    if len(frames) > _MAX_POSES:  # each takes a while to check
        raise UserError(f"{name} has more than {_MAX_POSES} poses")
    for i, frame in enumerate(frames):
        where, file = f"{name}: frames[{i}]", frame.get("file")
        if not isinstance(file, str) or not file:
            raise UserError(f"{where}: 'file' is missing or no text, expected a picture's name")
        if (picture := _plain(file)) in poses:
            raise UserError(f"{where}: a second pose of {picture}")
        poses[picture] = camera_of(frame, where)
    return poses


def _is_poses(name: str) -> bool:
    return name.lower().endswith(".json")


def _plain(name: str) -> str:
    """A name that other visitors may see."""
    return _ODD.sub("_", name.replace("\\", "/")).strip("./ ")[-80:] or "unnamed"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:g} MiB"
