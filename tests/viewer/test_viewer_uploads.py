"""What the viewer takes from visitors and their browsers, and what it refuses."""

import importlib.util
import io
import itertools
import json
import struct
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from lvsm_jax.viewer.uploads import Limits, Uploads
from tests.helpers.viewer_scene import HEIGHT, WIDTH, archive, entry, picture, pose, poses_json

needs_viser = pytest.mark.skipif(
    importlib.util.find_spec("viser") is None, reason="viser is not installed"
)


def test_poses_and_then_pictures():
    uploads = Uploads(Limits())
    assert uploads.receive("my cameras.json", poses_json({"images/a.png": 0, "b.png": 1})) == []
    assert uploads.poses == 2
    [photograph] = uploads.receive("a.png", picture(0))
    assert photograph.name == "images/a.png"
    loaded = photograph.load()
    np.testing.assert_array_equal(loaded.pixels, np.asarray(Image.open(io.BytesIO(picture(0)))))
    np.testing.assert_array_equal(loaded.camera.c2w, pose(0))
    assert uploads.receive("more.json", poses_json({"c.png": 2})) == [] and uploads.poses == 3
    folder = photograph.source.parent
    assert [file.name for file in folder.iterdir()] == ["0"]
    uploads.close()
    assert not folder.exists()
    with pytest.raises(ValueError, match="has left"):
        uploads.receive("b.png", picture(1))


def test_an_archive_of_a_folder():
    """In any order, with what macOS adds; names choose poses, not files."""
    names = {"a/1.png": 0, "b/1.png": 1, "../../up.png": 2}
    members = {f"scene/{name}": picture(number) for name, number in names.items()}
    members |= {"scene/cameras.json": poses_json(names), "__MACOSX/scene/._1.png": b"x"}
    uploads = Uploads(Limits())
    photographs = uploads.receive("scene.zip", archive(members))
    assert [photograph.name for photograph in photographs] == ["a/1.png", "b/1.png", "up.png"]
    for photograph, number in zip(photographs, names.values(), strict=True):
        np.testing.assert_array_equal(photograph.camera.c2w, pose(number))
        assert photograph.source.parent.name.startswith("lvsm-viewer-")
    uploads.close()


def transforms(names: dict[str, int], **fields) -> bytes:
    """As nerfstudio writes it, with a lens."""
    axes = np.diag([1, -1, -1, 1])  # OpenGL's
    size = {"w": WIDTH, "h": HEIGHT, "fl_x": 50.0, "fl_y": 50.0, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    frames = [
        {"file_path": name, "transform_matrix": (pose(number) @ axes).tolist()}
        for name, number in names.items()
    ]
    return json.dumps({"k1": 0.02, **size, "frames": frames, **fields}).encode()


def test_an_archive_with_the_cameras_of_another_program():
    """Names choose cameras here too, and lead to no file: not even those of other uploads."""
    frames = {"./images/a.png": 0, "../../b": 1, "/etc/passwd": 2, "c.png": 3}
    members = {"walk/images/a.png": picture(0), "walk/b.png": picture(1)}
    uploads = Uploads(Limits())
    uploads.receive("cameras.json", poses_json({"c.png": 4}))
    [other] = uploads.receive("c.png", picture(4))
    content = archive({"walk/transforms.json": transforms(frames), **members})
    first, second = uploads.receive("walk.zip", content)
    assert [first.name, second.name] == ["walk/images/a.png", "walk/b.png"]
    for number, photograph in enumerate((first, second)):
        np.testing.assert_allclose(photograph.camera.c2w, pose(number), atol=1e-12)
        assert photograph.lens is not None and photograph.load().pixels.shape == (HEIGHT, WIDTH, 3)
        assert other.source.parent in photograph.source.parents
    uploads.close()
    assert not other.source.parent.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"transforms.json": transforms({"a.png": 0})}, "drop it together with its pictures"),
        ({"transforms.json": transforms({"a.png": 0}), "b.png": picture(0)}, "b.png has no poses"),
        ({"transforms.json": transforms({"a.png": 0}), "a.png": b"GIF89a"}, "a.png: not a picture"),
        ({"t.json": transforms({"a.png": 0}, k1="x"), "a.png": picture(0)}, "t.json: .*'k1' is"),
        (
            {"t.json": transforms({"a.png": 0}, w=59), "a.png": picture(0)},
            "t.json: .* 'w' and 'h' are 59×40, but a.png has 60×40",
        ),
        (
            {"t.json": transforms({"a.png": 0}), "a.png": picture(0), "x/a.png": picture(1)},
            "x/a.png and a.png are both of a.png",
        ),
        (
            {name: transforms({"a.png": 0}) for name in ("b.json", "c.json")},
            r"2 files of cameras \(b.json, c.json\)",
        ),
        ({"sparse/0/images.bin": b"", "a.png": picture(0)}, "is of a COLMAP model"),
        ({"t.json": transforms({"a.png": 0}) + b"]", "a.png": picture(0)}, "t.json is not JSON"),
    ],
)
def test_cameras_of_other_programs_that_cannot_be_used_leave_nothing(members, message):
    uploads = Uploads(LIMITS)
    uploads.receive("cameras.json", POSES)
    [kept] = uploads.receive("d.png", picture(3))
    with pytest.raises(ValueError, match=message) as error:
        uploads.receive("walk.zip", archive(members))
    assert "lvsm-viewer-" not in str(error.value) and "photograph-" not in str(error.value)
    assert list(kept.source.parent.iterdir()) == [kept.source]
    assert len(uploads.receive("c.png", picture(2))) == 1
    uploads.close()


def broken_zip() -> bytes:
    content = bytearray(archive({"cameras.json": poses_json({"a.png": 0}) * 50}))
    content[60:70] = b"\xff" * 10
    return bytes(content)


def many_entries(count: int) -> bytes:
    """An archive whose directory names one file many times; its end says one."""
    content = archive({"a.png": b""})
    first, last = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    end = bytearray(content[last:])
    end[12:16] = struct.pack("<L", count * (last - first))
    return content[:first] + count * content[first:last] + end


def png(width, height, mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


def changed(**fields) -> bytes:
    return json.dumps({"frames": [entry(0, "a.png") | fields]}).encode()


LIMITS = Limits(bytes=200_000, photographs=3, pixels=WIDTH * HEIGHT)
POSES = poses_json({"a.png": 0, "b/a.png": 1, "b/c.png": 2, "d.png": 3, "e.png": 4})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("big.png", b"x" * 200_001, "big.png is larger than 0.190735 MiB"),
        ("bomb.zip", archive({"cameras.json": b" " * 10**7}), "more than .* when unpacked"),
        ("many.zip", archive({f"{i}.png": b"" for i in range(1001)}), "more than 1000 files"),
        ("many.zip", many_entries(1001), "more than 1000 files"),
        ("lzma.zip", archive({"a.png": b"x"}, zipfile.ZIP_LZMA), "must be deflated or stored"),
        ("x.json", b'{"frames": [' + b"{}," * 10_000 + b"{}]}", "more than 10000 poses"),
        ("broken.zip", broken_zip(), "broken.zip: no archive that can be read"),
        ("x.json", b"[1", "x.json is not JSON"),
        ("x.json", b"[" * 100_000, "x.json is not JSON"),
        ("x.json", b"\xff\xfe", "x.json is not JSON"),
        ("x.json", b'{"frames": []}', "'frames' must be a list"),
        ("x.json", changed(file=7), r"frames\[0\]: 'file' is missing or no text"),
        ("x.json", changed(c2w=[[1e400]]), r"frames\[0\]: 'c2w' is"),
        ("x.json", changed(w=0), "'w' is 0"),
        ("c.png", b"GIF89a", "c.png: not a picture"),
        ("c.png", b"", "c.png: not a picture"),
        ("c.png", b"\x80\x04cos\nsystem\n", "c.png: not a picture"),
        ("c.png", png(WIDTH, HEIGHT + 1), "pixels are more than"),
        ("c.png", png(HEIGHT, WIDTH), "is 40×60 pixels, but its camera is of a picture of 60×40"),
        ("c.png", png(WIDTH, HEIGHT, "RGBA"), "transparent"),
        ("c.png", picture(0)[:-30], "c.png: "),
        ("z.png", picture(0), "z.png has no poses among the 5 uploaded"),
        ("x/y.zip", archive({"c/a.png": picture(0), "n/a.png": picture(0), "u.txt": b""}), "u.txt"),
    ],
)
def test_bad_uploads_leave_nothing(name, content, message):
    uploads = Uploads(LIMITS)
    uploads.receive("cameras.json", POSES)
    [kept] = uploads.receive("d.png", picture(3))
    with pytest.raises(ValueError, match=message) as error:
        uploads.receive(name, content)
    assert "lvsm-viewer-" not in str(error.value)  # where we keep them is nobody's business
    assert uploads.poses == 5
    assert list(kept.source.parent.iterdir()) == [kept.source]
    [another] = uploads.receive("c.png", picture(2))  # it goes on
    assert another.name == "b/c.png"
    uploads.close()


def test_names_that_fit_several_poses():
    uploads = Uploads(Limits())
    uploads.receive("cameras.json", poses_json({"a/1.png": 0, "b/1.png": 1}))
    with pytest.raises(ValueError, match=r"1.png has 2 poses"):
        uploads.receive("1.png", picture(0))
    uploads.receive("more.json", poses_json({"1.png": 2}))
    members = {"x/a/1.png": picture(0), "x/1.png": picture(2)}
    assert [found.name for found in uploads.receive("x.zip", archive(members))] == [
        "a/1.png",
        "1.png",
    ]
    uploads.close()


def test_poses_are_bounded_over_several_files():
    uploads = Uploads(Limits())
    for part in range(2):
        uploads.receive("x.json", poses_json({f"{part}-{i}.png": 0 for i in range(4000)}))
    with pytest.raises(ValueError, match="more than 10000 poses of one visitor"):
        uploads.receive("x.json", poses_json({f"2-{i}.png": 0 for i in range(4000)}))
    assert uploads.poses == 8000


def test_one_visitor_may_not_fill_the_disk():
    uploads = Uploads(LIMITS)
    uploads.receive("cameras.json", POSES)
    for name in ("a.png", "c.png", "d.png"):
        uploads.receive(name, picture(0))
    with pytest.raises(ValueError, match="more than 3 photographs"):
        uploads.receive("e.png", picture(0))
    uploads.close()
    uploads = Uploads(Limits(bytes=len(picture(0)) + len(POSES)))
    uploads.receive("cameras.json", POSES)
    uploads.receive("a.png", picture(0))
    with pytest.raises(ValueError, match="photographs of one visitor have more than"):
        uploads.receive("a.png", picture(0))
    uploads.close()


def test_names_cannot_hold_markup():
    name = '<img src=x onerror="alert(1)">`.png'
    uploads = Uploads(Limits())
    uploads.receive("cameras.json", poses_json({name: 0}))
    [photograph] = uploads.receive(name, picture(0))
    assert not set("<>\"`'&") & set(photograph.name)
    uploads.close()


# The server's bounds.


@needs_viser
def test_uploads_are_refused_before_they_are_kept():
    """Also of a browser that lies about sizes: viser's own handler is not called."""
    from viser import _messages as messages

    from lvsm_jax.viewer.server import _limit_uploads

    handlers, kept, sent, told = {}, [], [], []
    transfers = {}

    def theirs_start(_, message):
        transfers[message.transfer_uuid] = {
            "transferred_bytes": 0,
            "total_bytes": message.size_bytes,
        }

    def theirs_part(_, message):
        kept.append(message)
        transfers[message.transfer_uuid]["transferred_bytes"] += len(message.content)

    connection = types.SimpleNamespace(
        unregister_handler=lambda kind, handler: handlers.__delitem__((kind, handler)),
        register_handler=lambda kind, handler: handlers.update({kind: handler}),
        queue_message=sent.append,
    )
    start_kind, part_kind = messages.FileTransferStartUpload, messages.FileTransferPart
    handlers |= {(start_kind, theirs_start): None, (part_kind, theirs_part): None}
    gui = types.SimpleNamespace(
        _websock_interface=connection,
        _current_file_upload_states=transfers,
        _handle_file_transfer_start=theirs_start,
        _handle_file_transfer_part=theirs_part,
    )
    client = types.SimpleNamespace(
        gui=gui, add_notification=lambda title, body, **_: told.append(body)
    )
    _limit_uploads(client, 2**20)
    assert handlers.keys() == {start_kind, part_kind}
    numbers = itertools.count()

    def start(size, parts=1):
        name = f"transfer {next(numbers)}"
        handlers[start_kind](0, start_kind("button", name, "a.png", "", parts, size))
        return name

    def part(name, size, index=0):
        handlers[part_kind](0, part_kind("button", name, index, b"x" * size))

    part(start(2**20 + 1), 1001)
    part(start(10, parts=10**9), 10)
    start(-1)
    assert not transfers and not kept and len(told) == len(sent) == 3
    assert "of 1 MiB allowed" in told[0]
    name = start(1000, parts=2)
    part(start(10), 10)
    assert told[3:] == ["one file at a time"] and not kept
    part(name, 900)
    part(name, 101, index=1)
    assert told[4:] == ["the file is larger than it said"] and len(kept) == 1
    assert not transfers
    part(name, 1, index=1)
    assert len(kept) == 1
