"""Photographs from a video, by ffmpeg. They have no cameras yet."""

import pathlib
import re
import subprocess
import tempfile

from lvsm_jax.common.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")

_QUALITY = "2"  # of ffmpeg's JPEGs, from 2, the best, to 31


def extract_frames(
    video: pathlib.Path,
    folder: pathlib.Path,
    *,
    every: int | None = None,
    count: int | None = None,
) -> list[pathlib.Path]:
    """Writes every n-th frame of a video, or a `count` of them evenly spaced, as JPEGs.

    Frames are upright: ffmpeg turns what a phone recorded lying. Files are `frame_00000.jpg` and so
    on, by the frame's number in the video; the folder must not exist, and appears whole or not at
    all. UserError for a video that cannot be read, more frames than it has, or without
    imageio-ffmpeg; FileExistsError for a folder that is there.
    """
    video, folder = pathlib.Path(video).expanduser(), pathlib.Path(folder).expanduser()
    if (every is None) == (count is None) or (every or count) < 1:
        raise UserError(f"every={every} and count={count}: expected one of them, at least 1")
    if folder.exists():
        raise FileExistsError(f"{folder} exists: frames are written to a new folder")
    if not video.is_file():
        raise FileNotFoundError(f"there is no video {video}")
    if count is not None:
        there = count_frames(video)
        if count > there:
            raise UserError(f"{video} has {there} frames, fewer than {count}")
        chosen = {round(i * (there - 1) / max(count - 1, 1)) for i in range(count)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        work = pathlib.Path(place) / "frames"
        work.mkdir()
        pick = f"not(mod(n,{every}))" if every else "+".join(f"eq(n,{n})" for n in sorted(chosen))
        options = ["-map", "0:v:0", "-vf", f"select='{pick}'", "-fps_mode", "passthrough"]
        _ffmpeg(video, [*options, "-qscale:v", _QUALITY, str(work / "%d.jpg")])
        files = sorted(work.glob("*.jpg"), key=lambda file: int(file.stem))
        if not files:
            raise UserError(f"{video}: no frame can be read")
        numbers = sorted(chosen) if count else range(0, every * len(files), every)
        for file, number in zip(files, numbers, strict=True):
            file.rename(work / f"frame_{number:05d}.jpg")
        work.rename(folder)
    return sorted(folder.iterdir())


def count_frames(video: pathlib.Path) -> int:
    """Frames of a video, by decoding all of them: what headers say is often wrong."""
    told = _ffmpeg(video, ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "null", "-"], "info")
    counts = re.findall(r"frame=\s*(\d+)", told)
    if not counts or int(counts[-1]) == 0:
        raise UserError(f"{video}: no frame can be read")
    return int(counts[-1])


def _ffmpeg(video: pathlib.Path, options: list[str], log: str = "error") -> str:
    """Runs ffmpeg on a video; what it printed."""
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise UserError("a video needs imageio-ffmpeg: pip install 'lvsm_jax[video]'") from None
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", log, "-stats"]
    command += ["-i", str(video.absolute()), *options]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["ffmpeg failed"]
        raise UserError(f"{video}: no video that can be read: {reason[0][-200:]}")
    return done.stderr
