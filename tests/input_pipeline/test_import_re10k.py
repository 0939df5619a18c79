"""The importer: every byte of what is sound, a reason for what is not, at any interruption."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline import storage
from input_pipeline.re10k import __main__ as import_re10k
from input_pipeline.re10k import import_chunks
from input_pipeline.re10k.import_chunks import ImportFailure
from tests.helpers import torch_zip


def jpeg(shade: int = 0, size: tuple[int, int] = (64, 36)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tensor(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def make_clip(key: str, frames: int = 3) -> dict:
    cameras = np.zeros((frames, 18), np.float32)
    cameras[:, :4] = [0.5, 0.9, 0.5, 0.5]
    for frame in range(frames):
        angle = 0.1 * frame
        rotation = [
            [np.cos(angle), 0, -np.sin(angle)],
            [0, 1, 0],
            [np.sin(angle), 0, np.cos(angle)],
        ]
        cameras[frame, 6:] = np.column_stack([rotation, [0.1 * frame, 0.2, 0.3]]).ravel()
    return {
        "key": key,
        "url": f"https://example.com/{key}",
        "timestamps": np.arange(frames, dtype=np.int64) * 33_000,
        "cameras": cameras,
        "images": [tensor(jpeg(frame)) for frame in range(frames)],
    }


def write_source(folder, chunks: dict[str, list], *, index: dict | None = None, split="train"):
    (folder / split).mkdir(parents=True, exist_ok=True)
    for name, clips in chunks.items():
        torch_zip.save(folder / split / name, clips)
    if index is None:
        index = {clip["key"]: name for name, clips in chunks.items() for clip in clips}
    (folder / split / "index.json").write_text(json.dumps(index))
    return folder


def command(*arguments, **options) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "input_pipeline.re10k", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, check=False, **options)


def without(clip: dict, name: str) -> dict:
    return {key: value for key, value in clip.items() if key != name}


def with_image(position: int, data: bytes) -> dict:
    clip = make_clip("bad")
    clip["images"][position] = tensor(data)
    return clip


def with_camera(position: int, column, value) -> dict:
    clip = make_clip("bad")
    clip["cameras"][position, column] = value
    return clip


GOOD = make_clip("bad")
MIRROR = [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
BAD_CLIPS = {
    "has no url": without(GOOD, "url"),
    "has no timestamps, images": without(without(GOOD, "images"), "timestamps"),
    "key: is empty or not printable": GOOD | {"key": ""},
    "key: is empty or not": GOOD | {"key": "\ud800"},
    "key: expected text, found a int": GOOD | {"key": 7},
    "url: expected text, found a NoneType": GOOD | {"url": None},
    "expected a dict, found a list": [1, 2],
    "timestamps: expected int64[n], found float32[3]": GOOD
    | {"timestamps": np.zeros(3, np.float32)},
    "cameras: expected float32[n, 18], found float32[3, 17]": GOOD
    | {"cameras": GOOD["cameras"][:, :17].copy()},
    "cameras: expected float32[n, 18], found a list": GOOD | {"cameras": [1.0]},
    "images: expected a list, found a ndarray": GOOD | {"images": np.zeros(3, np.uint8)},
    "2 images, 3 cameras and 3 timestamps": GOOD | {"images": GOOD["images"][:2]},
    "3 images, 3 cameras and 4 timestamps": GOOD | {"timestamps": np.zeros(4, np.int64)},
    "has no frames": make_clip("bad", frames=0),
    "frame 1: image: expected uint8[n], found float32[4]": GOOD
    | {"images": [GOOD["images"][0], np.zeros(4, np.float32), GOOD["images"][2]]},
    "frame 0: image: its bytes do not lie one after the other": GOOD
    | {"images": [torch_zip.Tensor(tensor(jpeg(0)), 0, (2**40,), (0,)), *GOOD["images"][1:]]},
    "frame 2: JPEG is truncated, it has no end marker": with_image(2, jpeg(2)[:-300]),
    "frame 0: image is not a JPEG, it starts with 89504e47": with_image(0, b"\x89PNG...."),
    "frame 1: image is not a JPEG, it starts with nothing": with_image(1, b""),
    "frame 1: JPEG cannot be decoded": with_image(1, b"\xff\xd8" + bytes(80) + b"\xff\xd9"),
    "frame 2: image is 32×36, frame 0 is 64×36": with_image(2, jpeg(2, (32, 36))),
    "frame 1: its camera is not finite": with_camera(1, 9, np.nan),
    "frame 2: its camera is not finite": with_camera(2, 0, np.inf),
    "frame 0: fx, fy = 0.5, -0.9 must be > 0": with_camera(0, 1, -0.9),
    "expected shares of the picture's width and height, not pixels": with_camera(2, 0, 480.0),
    "frame 2: fxfycxcy has focal lengths [1.0": with_camera(2, 0, 1e-42),
    "frame 1: fxfycxcy has the principal point [1.0": with_camera(1, 2, 1e30),
    "frame 0: w2c has a coordinate of 1e+20": with_camera(0, 9, 1e20),
    "frame 1: numbers 5 and 6 of its camera must be 0": with_camera(1, 4, 0.1),
    "frame 2: its camera is not a rotation": with_camera(2, 6, 1.01),
    "frame 0: its camera is a reflection": with_camera(0, slice(6, None), MIRROR),
}


@pytest.mark.parametrize(("reason", "clip"), BAD_CLIPS.items(), ids=BAD_CLIPS)
def test_a_bad_clip_is_refused_whole_with_its_reason(tmp_path, reason, clip):
    chunks = {"000000.torch": [make_clip("first"), clip, make_clip("last")]}
    index = {"first": "000000.torch", "last": "000000.torch"}
    source = write_source(tmp_path / "in", chunks, index=index)
    chunk = import_chunks.find_chunks(source_path(source), source_path(tmp_path / "out"))["train"][
        0
    ]
    (tmp_path / "out" / ".import").mkdir(parents=True)
    result = import_chunks.import_chunk(chunk, verify=True)
    assert result.shard.keys == ("first", "last")
    (finding,) = result.findings
    assert finding.refused
    assert finding.key == ("bad" if isinstance(clip, dict) and clip["key"] == "bad" else "#1")
    assert reason in finding.reason
    assert str(finding).startswith(f"train/000000.torch clip {finding.key}: ")


def source_path(path):
    return import_re10k.epath.Path(path)


def test_nothing_is_lost_silently(tmp_path, capsys):
    chunks = {
        "000000.torch": [make_clip("a"), make_clip("b"), make_clip("a", 5)],
        "000001.torch": [make_clip("b", 7), make_clip("c"), make_clip("unlisted")],
        "000002.torch": [make_clip("d")],
        "000003.torch": [make_clip("e")],
    }
    index = {
        "a": "000000.torch",
        "b": "000000.torch",
        "c": "000000.torch",  # lies in 000001
        "d": "000002.torch",  # which will be truncated
        "e": "000003.torch",  # which will be damaged
        "f": "000001.torch",  # not in it
        "g": "000009.torch",  # no such file
        "h": "000009.torch",
    }
    source = write_source(tmp_path / "in", chunks, index=index)
    path = source / "train" / "000002.torch"
    path.write_bytes(path.read_bytes()[:-50])
    path = source / "train" / "000003.torch"
    data = bytearray(path.read_bytes())
    data[data.index(jpeg(1)) + 600] ^= 1
    path.write_bytes(data)

    findings = import_re10k.run(source, tmp_path / "out", workers=2)
    refused = {(f.chunk, f.key): f.reason for f in findings if f.refused}
    assert {where: reason.split(",")[0] for where, reason in refused.items()} == {
        ("000000.torch", "a"): "duplicate key: this chunk holds it already",
        ("000001.torch", "b"): "duplicate key: an earlier chunk holds it already",
        ("000001.torch", "f"): "index.json lists it here",
        ("000002.torch", None): "not a zip file as torch.save writes them",
        ("000003.torch", None): "entry archive/data/3 does not have its checksum",
        ("000009.torch", None): "no such file; index.json lists 2 clips in it",
    }
    assert {(f.key, f.reason) for f in findings if not f.refused} == {
        ("c", "imported, though index.json lists it in 000000.torch"),
        ("unlisted", "imported, though index.json does not list it"),
    }
    reader = storage.SplitReader(tmp_path / "out", "train")
    assert reader.scenes.key.tolist() == ["a", "b", "c", "unlisted"]
    assert reader.scenes.num_frames.tolist() == [3, 3, 3, 3]
    written = json.loads((tmp_path / "out" / "refused.json").read_text())
    assert len(written["refused"]) == 6
    assert len(written["notes"]) == 2
    printed = capsys.readouterr().out
    assert "train       4      4      12        6" in printed
    assert "train/000003.torch: entry archive/data/3" in printed

    again = import_re10k.run(source, tmp_path / "out", workers=2)
    assert set(again) == set(findings)
    assert "was complete already: nothing to do" in capsys.readouterr().out


def test_strict_declares_nothing_complete(tmp_path):
    chunks = {"000000.torch": [make_clip("a"), make_clip("bad") | {"url": 3}]}
    source = write_source(tmp_path / "in", chunks)
    run = command(source, tmp_path / "out", "--strict", "--workers", 1)
    assert run.returncode == 1
    assert "train/000000.torch clip bad: url: expected text, found a int" in run.stdout
    assert "--strict: 1 refused" in run.stderr
    with pytest.raises(storage.DatasetError, match=r"no dataset_info\.json"):
        storage.SplitReader(tmp_path / "out", "train")
    run = command(source, tmp_path / "out", "--workers", 1)
    assert run.returncode == 0
    assert storage.SplitReader(tmp_path / "out", "train").scenes.key.tolist() == ["a"]


def test_without_verification_only_ends_and_headers_are_looked_at(tmp_path, capsys):
    clip = with_image(1, b"\xff\xd8" + bytes(80) + b"\xff\xd9")
    chunks = {"000000.torch": [make_clip("a"), clip]}
    source = write_source(tmp_path / "in", chunks)
    findings = import_re10k.run(source, tmp_path / "out", verify=False)
    assert [finding.key for finding in findings] == ["bad"]

    path = source / "train" / "000000.torch"
    data = bytearray(path.read_bytes())
    position = data.index(jpeg(2)) + 700
    data[position] ^= 1
    path.write_bytes(data)
    findings = import_re10k.run(source, tmp_path / "unverified", verify=False)
    assert [finding.key for finding in findings] == ["bad"]
    with pytest.raises(storage.DatasetError, match="holds no frame"):
        import_re10k.run(source, tmp_path / "unverified")  # verifies what was not
    assert "does not have its checksum" in capsys.readouterr().out


def test_a_source_that_changes_is_an_error(tmp_path):
    source = write_source(tmp_path / "in", {"000000.torch": [make_clip("a")]})
    import_re10k.run(source, tmp_path / "out")
    write_source(source, {"000000.torch": [make_clip("a", 4)]})
    with pytest.raises(ImportFailure, match=r"000000\.torch has changed since .* delete"):
        import_re10k.run(source, tmp_path / "out")
    (tmp_path / "out" / ".import" / "train-000000.torch.json").unlink()
    import_re10k.run(source, tmp_path / "out")
    assert len(storage.SplitReader(tmp_path / "out", "train")) == 4
    write_source(source, {"000001.torch": [make_clip("b")]})
    with pytest.raises(ImportFailure, match="another number of chunks"):
        import_re10k.run(source, tmp_path / "out")


def test_splits_may_come_one_after_the_other(tmp_path):
    source = write_source(tmp_path / "in", {"000000.torch": [make_clip("a")]})
    write_source(source, {"000000.torch": [make_clip("t", 5)]}, split="test")
    index = {"t": {"context": [0, 4], "target": [1, 2]}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    import_re10k.run(source, out, splits=["test"], evaluation_index=tmp_path / "index.json")
    assert json.loads((out / "evaluation_index.json").read_text()) == index
    with pytest.raises(storage.DatasetError, match=r"only \['test'\]"):
        storage.SplitReader(out, "train")
    for path in (source / "test").iterdir():  # no longer needed
        path.unlink()
    import_re10k.run(source, out)
    assert len(storage.SplitReader(out, "train")) == 3
    assert len(storage.SplitReader(out, "test")) == 5


def test_mistakes_in_the_command_are_explained(tmp_path):
    run = command(tmp_path / "nowhere", tmp_path / "out")
    assert (run.returncode, run.stdout) == (1, "")
    assert f"error: SOURCE {tmp_path}/nowhere is not a folder" in run.stderr
    with pytest.raises(ImportFailure, match=r"no folder of \*\.torch chunks; .*000000\.torch"):
        import_re10k.run(tmp_path, tmp_path / "out")
    source = write_source(tmp_path / "in", {"000000.torch": [make_clip("a")]})
    with pytest.raises(ImportFailure, match=r"no split \['val'\], only \['train'\]"):
        import_re10k.run(source, tmp_path / "out", splits=["val"])
    with pytest.raises(ImportFailure, match="no evaluation index"):
        import_re10k.run(source, tmp_path / "out", evaluation_index=tmp_path / "none.json")
    (source / "train" / "index.json").write_text("[]")
    with pytest.raises(ImportFailure, match=r"index\.json is not a JSON object"):
        import_re10k.run(source, tmp_path / "out")
    assert command("--workers", "0", source, tmp_path / "out").returncode == 2


def worker_ids(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds processes in /proc")
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path):
    names = [f"{i:06d}.torch" for i in range(6)]
    chunks = {name: [make_clip(f"{name}-{i}", 40) for i in range(4)] for name in names}
    source = write_source(tmp_path / "in", chunks)
    import_re10k.run(source, tmp_path / "straight", workers=1)
    out = tmp_path / "out"
    program = [sys.executable, "-m", "input_pipeline.re10k", str(source), str(out)]
    kept = []
    for finished, number in ((1, signal.SIGKILL), (2, signal.SIGINT), (3, signal.SIGKILL)):
        run = subprocess.Popen(
            [*program, "--workers", "2"], stderr=subprocess.DEVNULL, start_new_session=True
        )
        # Before there are workers, a signal meets nothing but imports.
        while len(list((out / ".import").glob("*.json"))) < finished or not worker_ids(run.pid):
            assert run.poll() is None
            time.sleep(0.005)
        workers = worker_ids(run.pid)
        if number == signal.SIGINT:  # as Ctrl-C, to all
            os.killpg(run.pid, number)
            assert run.wait(20) == 130
        else:
            run.send_signal(number)
            run.wait()
        assert not (out / "dataset_info.json").exists()
        until = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{worker}/fd/0") for worker in workers):
            assert time.monotonic() < until, "workers outlive the program"
            time.sleep(0.02)
        kept.append({path: path.stat().st_mtime_ns for path in out.glob(".import/*.json")})
    assert subprocess.run([*program], stderr=subprocess.DEVNULL, check=False).returncode == 0
    for path, written in kept[-1].items():
        assert path.stat().st_mtime_ns == written, "a finished chunk was imported again"
    straight = {path.name: path for path in (tmp_path / "straight").iterdir() if path.is_file()}
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == sorted(straight)
    for name, path in straight.items():
        if not name.endswith(".npz"):  # zip files hold dates
            assert (out / name).read_bytes() == path.read_bytes(), name
    assert storage.SplitReader(out, "train").scenes.key.tolist() == [
        clip["key"] for name in names for clip in chunks[name]
    ]


def own_reading(path) -> list[list[bytes]]:
    """All byte strings of a chunk's storages, by nothing but its zip directory."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/data/" in name]
        return [archive.read(name) for name in sorted(names, key=lambda n: int(n.split("/")[-1]))]


def test_real_chunks_are_imported_bit_for_bit(shared_data, tmp_path):
    source = shared_data / "re10k_sample"
    run = command(source, tmp_path, "--workers", 2)
    assert run.returncode == 0, run.stderr
    assert "test 1 3 217 0" in " ".join(run.stdout.split())
    assert "train 2 7 438 0" in " ".join(run.stdout.split())
    for split, clips in (("train", 7), ("test", 3)):
        reader = storage.SplitReader(tmp_path, split)
        assert len(reader.scenes) == clips
        index = json.loads((source / split / "index.json").read_text())
        assert reader.scenes.key.tolist() == list(index)
        frames = reader.frames(range(len(reader)))
        blobs = [b for path in sorted((source / split).glob("*.torch")) for b in own_reading(path)]
        jpegs = [blob for blob in blobs if blob[:2] == b"\xff\xd8" and blob[-2:] == b"\xff\xd9"]
        assert [frame.image for frame in frames] == jpegs
        others = iter(blob for blob in blobs if blob[:2] != b"\xff\xd8")
        for first, count in zip(reader.scenes.first_frame, reader.scenes.num_frames, strict=True):
            clip = frames[first : first + count]
            times = np.array([frame.timestamp for frame in clip], np.int64)
            cameras = np.zeros((count, 18), np.float32)
            cameras[:, :4] = [frame.normalized_fxfycxcy for frame in clip]
            cameras[:, 6:] = [frame.w2c.ravel() for frame in clip]
            assert {next(others), next(others)} == {times.tobytes(), cameras.tobytes()}
    expected = (source / "evaluation_index.json").read_text()
    assert (tmp_path / "evaluation_index.json").read_text() == expected
