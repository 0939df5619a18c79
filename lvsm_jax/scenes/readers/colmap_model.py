"""Prints the cameras and poses of a COLMAP model as JSON, for `lvsm_jax.scenes.readers.colmap`.

A program of its own because on some damaged files COLMAP's reader takes all memory or ends the
process. It must import nothing else of this package.
"""

import json
import math
import os
import pathlib
import resource
import sys
import tempfile

_MEMORY = 2**30  # bytes of address space, besides what the files need
_FILES_IN_MEMORY = 64  # times their size, far more than a sound model takes


def main(folder: str) -> None:
    """Reads the model of a folder, text or binary, and prints it."""
    files = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir() if file.is_file())
    limit = _MEMORY + _FILES_IN_MEMORY * files
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.environ["OMP_NUM_THREADS"] = "1"  # each would reserve a stack
    import pycolmap

    with tempfile.TemporaryDirectory() as place:
        names = _write_canonical(pathlib.Path(folder), pathlib.Path(place))
        model = pycolmap.Reconstruction(place if names else folder)
    cameras = {}
    for camera_id, camera in model.cameras.items():
        values = zip(camera.params_info.split(", "), camera.params.tolist(), strict=True)
        size = {"w": camera.width, "h": camera.height}
        cameras[camera_id] = {"model": camera.model.name, "parameters": dict(values), **size}
    images = [
        {
            "file": names.get(image.image_id, image.name),
            "camera": image.camera_id,
            "w2c": image.cam_from_world().matrix().tolist() if image.has_pose else None,
        }
        for image in model.images.values()
    ]
    json.dump({"cameras": cameras, "images": images}, sys.stdout)


def _write_canonical(folder: pathlib.Path, place: pathlib.Path) -> dict[int, str]:
    """Writes a text model as COLMAP's reader takes it; the names of its images, by their ids.

    Programs write it with a byte order mark, without the lines of points, with rotations of another
    length, without points3D.txt. Points are not needed, and left out. Names may have blanks, at
    which COLMAP's reader ends them: there they are numbers. Empty for a binary model.
    """
    if (folder / "images.bin").exists() or not (folder / "images.txt").exists():
        return {}
    names, lines = {}, []
    for line in _lines_of(folder / "images.txt"):
        parts = line.split(maxsplit=9)
        if not _is_image(parts):
            continue
        quaternion = [float(part) for part in parts[1:5]]
        length = math.hypot(*quaternion) or 1.0
        if abs(length - 1) > 1e-9:
            parts[1:5] = [repr(value / length) for value in quaternion]
        names[int(parts[0])] = parts[9]
        lines.append(f"{' '.join(parts[:9])} {len(lines)}\n\n")
    (place / "images.txt").write_text("".join(lines))
    (place / "points3D.txt").write_text("")
    for name in ("cameras.txt", "rigs.txt", "frames.txt"):
        if (folder / name).exists():
            (place / name).write_text("\n".join(_lines_of(folder / name)) + "\n")
    return names


def _lines_of(file: pathlib.Path) -> list[str]:
    lines = map(str.strip, file.read_text("utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _is_image(parts: list[str]) -> bool:
    """Whether these are of a pose: those of points are numbers alone, three for each."""
    if len(parts) < 10 or (_is_number(parts[9].split()[0]) and len(parts[9].split()) % 3 == 0):
        return False
    return parts[0].isdecimal() and parts[8].isdecimal() and all(map(_is_number, parts[1:8]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
