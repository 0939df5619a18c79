"""Rendered frames in a folder: written one by one, gone on with later, and made a video."""

import json
import pathlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from lvsm_jax.common.files import atomic_write, clear_unfinished, write_text

_VIDEO = "video.mp4"
_RECORD = "render.json"
_ALL_FRAMES = "frame_*.png"


def check_folder(folder: pathlib.Path, record: Mapping[str, Any], overwrite: bool) -> None:
    """Raises FileExistsError unless the frames of a record may be written to a folder.

    They may if it is new or empty, has frames of that record, or frames that are to be overwritten.
    """
    if not folder.exists():
        return
    clear_unfinished(folder)
    if not folder.is_dir() or (not (folder / _RECORD).exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else, no {_RECORD}: choose another folder")
    there = _read_record(folder)
    if any(folder.glob(_ALL_FRAMES)) and not overwrite and there != record:
        other = sorted(key for key in record if there.get(key) != record[key])
        raise FileExistsError(
            f"{folder} has frames of another command (other {', '.join(other)}): choose another "
            "folder, or --overwrite them"
        )


def take_folder(folder: pathlib.Path, record: Mapping[str, Any], overwrite: bool) -> None:
    """Makes a folder that `check_folder` allowed ready; frames of the record stay there."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite or _read_record(folder) != record:
        for old in (*folder.glob(_ALL_FRAMES), folder / _VIDEO):
            old.unlink(missing_ok=True)
    write_text(folder / _RECORD, json.dumps(record, indent=1) + "\n")


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (ValueError, FileNotFoundError):
        return {}
    return record if isinstance(record, dict) else {}


def save_frames(
    renders: Iterable[UInt8[np.ndarray, "h w 3"]], files: Sequence[pathlib.Path], total: int
) -> None:
    """Writes renders to PNG files one by one, and shows how far it is of so many in total."""
    with tqdm(total=total, initial=total - len(files), unit="frame") as progress:
        for file, pixels in zip(files, renders, strict=True):
            with atomic_write(file) as local:
                Image.fromarray(pixels).save(local, format="PNG")
            progress.update()


def write_video(folder: pathlib.Path, count: int, fps: float) -> pathlib.Path:
    """Makes an H.264 MP4 that browsers play of the frames in a folder; odd sizes get a black edge.

    Raises ModuleNotFoundError without imageio-ffmpeg, and OSError that says how ffmpeg failed.
    """
    import imageio_ffmpeg

    file = folder / _VIDEO
    with atomic_write(file.absolute()) as local:
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
            *("-framerate", str(fps), "-i", "frame_%05d.png", "-frames:v", str(count)),
            *("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709"),
            *("-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-colorspace", "bt709"),
            *("-movflags", "+faststart", "-f", "mp4", local),
        ]
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(f"ffmpeg could not write {file}: {done.stderr.strip()[-300:]}")
    return file
