"""Prints the cameras and poses of a COLMAP model as JSON, for `lvsm_jax.scenes.readers.colmap`.

A program of its own because on some damaged files COLMAP's reader takes all memory or ends the
process. It must import nothing else of this package.
"""

import json
import os
import pathlib
import resource
import sys

_MEMORY = 2**30  # bytes of address space, besides what the files need
_FILES_IN_MEMORY = 64  # times their size, far more than a sound model takes


def main(folder: str) -> None:
    """Reads the model of a folder, text or binary, and prints it."""
    files = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir() if file.is_file())
    limit = _MEMORY + _FILES_IN_MEMORY * files
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.environ["OMP_NUM_THREADS"] = "1"  # each would reserve a stack
    import pycolmap

    model = pycolmap.Reconstruction(folder)
    cameras = {}
    for camera_id, camera in model.cameras.items():
        values = zip(camera.params_info.split(", "), camera.params.tolist(), strict=True)
        size = {"w": camera.width, "h": camera.height}
        cameras[camera_id] = {"model": camera.model.name, "parameters": dict(values), **size}
    names = _names_in_text(pathlib.Path(folder))
    images = [
        {
            "file": names.get(image.image_id, image.name),
            "camera": image.camera_id,
            "w2c": image.cam_from_world().matrix().tolist() if image.has_pose else None,
        }
        for image in model.images.values()
    ]
    json.dump({"cameras": cameras, "images": images}, sys.stdout)


def _names_in_text(folder: pathlib.Path) -> dict[int, str]:
    """Names of images by their ids; pycolmap ends those in text files at the first space."""
    file = folder / "images.txt"
    if (folder / "images.bin").exists() or not file.exists():
        return {}
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    poses = (line.split(maxsplit=9) for line in lines[::2])  # every other line is of points
    return {int(pose[0]): pose[9].rstrip() for pose in poses if len(pose) == 10}


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
