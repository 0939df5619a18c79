"""Renders of one object, in the layouts that people have them in.

| layout | files | cameras |
|---|---|---|
| `opencv_cameras` | `opencv_cameras.json` | w2c, OpenCV's axes |
| `blender` | `transforms_train.json`, also `_val` and `_test` | c2w, OpenGL's axes |
| `zero123` | `000.png`, `000.npy` | w2c `[3, 4]`, Blender's axes; no field of view |
| `ssd_lvsm` | the same | w2c, OpenCV's axes; no field of view |
| `lgm` | `rgb/000.png`, `pose/000.txt` | c2w of 16 numbers, OpenCV's axes; no field of view |
| `gobjaverse` | `campos_512_v4/00000/00000.{png,json}` | OpenCV's axes `x y z`, and `origin` |
| `scene` | any other of `read_scene` | |

A field of view that files do not hold is asked for. The object is at the world's origin.
"""

import math
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float64

from lvsm_jax.common.files import read_json
from lvsm_jax.common.text import shortened
from lvsm_jax.scenes.camera_json import number, numbers
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import read_scene, scene
from lvsm_jax.scenes.readers.scene import PosedImage, Scene, SceneError
from lvsm_jax.scenes.readers.scene_json import read_scene_json

LAYOUTS = ("opencv_cameras", "blender", "zero123", "ssd_lvsm", "lgm", "gobjaverse", "scene")
LARGEST_ANGLE = 2.0  # degrees beside the origin, beyond which a camera does not look at the object

_BLENDER_FILES = tuple(f"transforms_{split}.json" for split in ("train", "val", "test"))
_CAMPOS = "campos_512_v4"
_MAX_BYTES = 2**16  # of a file with one camera
_GL = np.diag([1.0, -1.0, -1.0, 1.0])  # from OpenGL's camera axes to OpenCV's, and back


def read_object(
    path: pathlib.Path, layout: str | None = None, fov: float | None = None
) -> tuple[Scene, str]:
    """The views of an object, and their layout, which is detected where None is given.

    `fov` is the horizontal field of view in degrees, of square pixels, for layouts without one.
    SceneError names the file and what was expected: also where several layouts could be meant, a
    field of view is missing, or given beside that of the files.
    """
    named = layout is not None
    layout = layout or detect_layout(path)
    if layout == "opencv_cameras" and path.is_dir():
        found = read_scene_json(path / "opencv_cameras.json", None)
        if found is None:
            raise SceneError(f"{path}: expected opencv_cameras.json")
    elif layout == "blender" and path.is_dir():
        found = _read_blender(path)
    elif layout == "lgm":
        found = _read_posed(path, path / "rgb", path / "pose", ".txt", _c2w_of_text, fov)
    elif layout == "gobjaverse":
        found = _read_gobjaverse(path, fov)
    elif layout in ("zero123", "ssd_lvsm"):
        axes = np.eye(4) if layout == "ssd_lvsm" else _GL

        def c2w_of(file: pathlib.Path) -> Float64[np.ndarray, "4 4"]:
            return np.linalg.inv(axes @ _w2c_of_array(file))

        found = _read_posed(path, path, path, ".npy", c2w_of, fov)
        if not named and layout == "zero123" and _axes_that_fit(found) == _OTHER_AXES["OpenCV"]:
            raise SceneError(
                f"{path}: its cameras look at the object with OpenCV's axes, as SSD-LVSM's files, "
                "not with Blender's, as zero123's: name the --layout, ssd_lvsm or zero123"
            )
    else:
        found = read_scene(path)
    if layout in ("opencv_cameras", "blender", "scene") and fov is not None:
        raise SceneError(f"{path}: a field of view is given, but its files hold one")
    return found, layout


def detect_layout(path: pathlib.Path) -> str:
    """The layout of an object's folder, or file of cameras, by what is there."""
    if path.is_file():
        return "blender" if path.name in _BLENDER_FILES else "scene"
    marks = {
        "opencv_cameras": (path / "opencv_cameras.json").is_file(),
        "blender": any((path / name).is_file() for name in _BLENDER_FILES),
        "gobjaverse": (path / _CAMPOS).is_dir() or path.name == _CAMPOS,
        "lgm": (path / "rgb").is_dir() and (path / "pose").is_dir(),
        "zero123": any(file.stem.isdigit() for file in path.glob("*.npy")),
    }
    there = [layout for layout, is_there in marks.items() if is_there]
    if len(there) > 1:
        raise SceneError(f"{path} is of several layouts: name one, --layout={' or '.join(there)}")
    return there[0] if there else "scene"


def _read_blender(path: pathlib.Path) -> Scene:
    """The views of all its splits, one after the other."""
    files = [path / name for name in _BLENDER_FILES if (path / name).is_file()]
    if not files:
        raise SceneError(f"{path}: expected one of {', '.join(_BLENDER_FILES)}")
    scenes = [read_scene_json(file, None) for file in files]
    photographs = [photograph for one in scenes for photograph in one.photographs]
    names = [photograph.name for photograph in photographs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SceneError(f"{path}: several of its files name {scene.some_of(twice)}")
    notes = list(dict.fromkeys(note for one in scenes for note in one.notes))
    return Scene(str(path), photographs, notes)


def _read_posed(
    source: pathlib.Path,
    images: pathlib.Path,
    poses: pathlib.Path,
    suffix: str,
    c2w_of: Callable[[pathlib.Path], Float64[np.ndarray, "4 4"]],
    fov: float | None,
) -> Scene:
    """Views of which each has a file with its pose, and a picture of the same name."""
    files = sorted(poses.glob(f"*{suffix}")) if poses.is_dir() else []
    if not files or not images.is_dir():
        raise SceneError(f"{source}: no poses {poses / ('*' + suffix)} with pictures in {images}")
    if fov is None:
        raise SceneError(f"{source}: its files hold no field of view: --fov=DEGREES says it")
    posed = []
    for file in files:
        image = scene.find_image(images, file.stem, str(file))
        if image is None:
            posed.append(PosedImage(file.stem, None, None))
            continue
        with scene.naming(str(file)):
            c2w = c2w_of(file)
        posed.append(_posed(file.stem, image, c2w, fov, str(file)))
    return scene.make_scene(source, images, posed, images.iterdir(), by_name=True)


def _read_gobjaverse(path: pathlib.Path, fov: float | None) -> Scene:
    folder = path if path.name == _CAMPOS else path / _CAMPOS
    files = sorted(folder.glob("[0-9]*/[0-9]*.json"))
    if not files:
        raise SceneError(f"{path}: no {_CAMPOS}/00000/00000.json")
    posed = []
    for file in files:
        values, where = read_json(file), str(file)
        name = f"{file.parent.name}/{file.stem}"
        image = scene.find_image(folder, f"{name}.png", where)
        if image is None:
            posed.append(PosedImage(name, None, None))
            continue
        c2w = np.eye(4)
        for column, field in enumerate(("x", "y", "z", "origin")):
            c2w[:3, column] = numbers(values, field, (3,), where)
        angle = fov
        if "x_fov" in values:
            if fov is not None:
                raise SceneError(f"{where}: a field of view is given, but it holds one, 'x_fov'")
            angle = math.degrees(number(values, "x_fov", where))
        elif angle is None:
            raise SceneError(f"{where}: it holds no 'x_fov': --fov=DEGREES says it")
        posed.append(_posed(name, image, c2w, angle, where))
    # Beside the pictures lie maps of albedo and others, which are none.
    return scene.make_scene(folder, folder, posed, [], by_name=True)


def _posed(
    name: str, image: pathlib.Path, c2w: Float64[np.ndarray, "4 4"], fov: float, where: str
) -> PosedImage:
    width, height = scene.picture_size_of(image)
    if not 0 < fov < 180:
        raise SceneError(f"{where}: a field of view of {fov:g}°, expected 0 to 180")
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    with scene.naming(where):
        camera = PosedCamera(c2w, [focal, focal, width / 2, height / 2], width, height)
    return scene.posed_image(name, image, camera, where)


def _w2c_of_array(file: pathlib.Path) -> Float64[np.ndarray, "4 4"]:
    _check_size(file)
    return _rigid(scene.load_array(file))


def _c2w_of_text(file: pathlib.Path) -> Float64[np.ndarray, "4 4"]:
    _check_size(file)
    try:
        values = np.array([float(word) for word in file.read_text().split()])
    except (ValueError, OverflowError) as error:
        raise SceneError(f"expected 16 numbers: {shortened(error)}") from None
    if values.size != 16:
        raise SceneError(f"{values.size} numbers, expected 16")
    return _rigid(values.reshape(4, 4))


def _check_size(file: pathlib.Path) -> None:
    if file.stat().st_size > _MAX_BYTES:
        raise SceneError(f"more than {_MAX_BYTES >> 10} KiB, no camera")


def _rigid(array: np.ndarray) -> Float64[np.ndarray, "4 4"]:
    """A pose as a camera takes it, before its axes are changed."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise SceneError("expected an array of numbers")
    # Any intrinsics: the camera checks that the pose is one.
    return PosedCamera(array, [100.0, 100.0, 50.0, 50.0], 100, 100).c2w


_OTHER_AXES: dict[str, str] = {
    "OpenCV": "with y and z of the camera's axes turned round",
    "inverse": "with the matrices inverted, world to camera for camera to world",
}


def look_beside(found: Scene) -> list[str]:
    """Notes on the cameras that do not look at the origin within `LARGEST_ANGLE`, by name."""
    angles = _angles([photograph.camera.c2w for photograph in found.photographs])
    beside = [
        f"{photograph.name} ({angle:.0f}°)"
        for photograph, angle in zip(found.photographs, angles, strict=True)
        if angle > LARGEST_ANGLE
    ]
    if not beside:
        return []
    hint = _axes_that_fit(found)
    told = f"{len(beside)} cameras do not look at the object, which is at the origin: "
    return [told + scene.some_of(beside) + (f"; {hint} they would" if hint else "")]


def _axes_that_fit(found: Scene) -> str | None:
    """In words, other axes with which all cameras would look at the origin, if theirs do not."""
    poses = [photograph.camera.c2w for photograph in found.photographs]
    others = {"OpenCV": lambda c2w: c2w @ _GL, "inverse": np.linalg.inv}
    if max(_angles(poses)) <= LARGEST_ANGLE:
        return None
    for name, change in others.items():
        if max(_angles(map(change, poses))) <= LARGEST_ANGLE:
            return _OTHER_AXES[name]
    return None


def _angles(poses: Iterable[Float64[np.ndarray, "4 4"]]) -> list[float]:
    """Degrees between each viewing direction and that to the origin; 0 for a camera in it."""
    angles = []
    for c2w in poses:
        forward, centre = c2w[:3, 2], c2w[:3, 3]
        length = np.linalg.norm(centre) * np.linalg.norm(forward)
        cosine = 1.0 if length == 0 else float(-forward @ centre / length)
        angles.append(math.degrees(math.acos(min(1.0, max(-1.0, cosine)))))
    return angles
