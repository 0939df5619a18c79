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
_ALL_FRAMES, _HELD_OUT = "frame_*.png", "held_out*"


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
        for old in (*folder.glob(_ALL_FRAMES), *folder.glob(_HELD_OUT), folder / _VIDEO):
            old.unlink(missing_ok=True)
    write_text(folder / _RECORD, json.dumps(record, indent=1) + "\n")


def has_record(folder: pathlib.Path, record: Mapping[str, Any]) -> bool:
    """Whether a folder was begun by this very command."""
    return _read_record(folder) == json.loads(json.dumps(record))


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


def strip_of(
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]], scale: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures of one size in columns of up to four, as high as one of them enlarged `scale` times.

    What they do not fill is black.
    """
    height, width, _ = pictures[0].shape
    columns = -(-len(pictures) // 4)
    rows = -(-len(pictures) // columns)
    cell = height * scale // rows, max(1, width * scale // rows)
    strip = np.zeros((height * scale, cell[1] * columns, 3), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i % rows * cell[0], i // rows * cell[1]
        small = Image.fromarray(picture).resize(cell[::-1], Image.Resampling.LANCZOS)
        strip[top : top + cell[0], left : left + cell[1]] = small
    return strip


def write_video(
    folder: pathlib.Path,
    count: int,
    fps: float,
    scale: int = 1,
    beside: UInt8[np.ndarray, "H W 3"] | None = None,
) -> pathlib.Path:
    """Makes an H.264 MP4 that browsers play of the frames in a folder; odd sizes get a black edge.

    Frames are enlarged `scale` times; `beside` is a picture as high as that, to their left. Raises
    ModuleNotFoundError without imageio-ffmpeg, and OSError that says how ffmpeg failed.
    """
    import imageio_ffmpeg

    file = folder / _VIDEO
    rate = ["-framerate", str(fps)]
    inputs = [*rate, "-i", "frame_%05d.png"]
    larger = f"scale=iw*{scale}:ih*{scale}:flags=lanczos"
    last = "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709"
    graph = f"[0]{larger},{last}[out]"
    if beside is not None:
        height, width, _ = beside.shape
        inputs += [
            *rate,
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-i",
            "-",
        ]
        still = "[1]loop=-1:1[still]"  # the same picture for ever
        graph = f"[0]{larger},format=rgb24[path];{still};[still][path]hstack,{last}[out]"
    with atomic_write(file.absolute()) as local:
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *inputs),
            *("-filter_complex", graph, "-map", "[out]", "-frames:v", str(count)),
            *("-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-colorspace", "bt709"),
            *("-movflags", "+faststart", "-f", "mp4", local),
        ]
        feed = {"stdin": subprocess.DEVNULL}
        if beside is not None:
            feed = {"input": np.ascontiguousarray(beside).tobytes()}
        done = subprocess.run(command, cwd=folder, capture_output=True, **feed)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()[-300:]
            raise OSError(f"ffmpeg could not write {file}: {reason}")
    return file
