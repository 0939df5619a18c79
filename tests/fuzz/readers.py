"""Every reader of files from outside: how to write a sound input, and how to read it."""

import dataclasses
import io
import json
import pathlib
import pickle
import sys
import zipfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy
from etils import epath
from PIL import Image

from input_pipeline.alpha import DatasetAlpha, read_alpha, write_alpha
from input_pipeline.bucket_records import BucketRecords
from input_pipeline.re10k import pixelsplat
from input_pipeline.sampling import read_index
from input_pipeline.storage import SplitReader
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.frozen import dino_weights as dino_files
from lvsm_jax.frozen import perceptual
from lvsm_jax.frozen.dino import DinoConfig
from lvsm_jax.frozen.lpips import read_tree
from lvsm_jax.scenes.camera_json import read_camera_path
from lvsm_jax.scenes.photograph import Photograph, PosedCamera
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.scenes.readers import read_scene
from lvsm_jax.scenes.readers.objects import read_object
from lvsm_jax.viewer.uploads import Limits, Uploads
from lvsm_jax.weights.fingerprints import fingerprint_all
from lvsm_jax.weights.state_dict import CHECKSUM, read_checkpoint
from tests.helpers import tiny_dataset, torch_zip
from tests.helpers.frozen_networks import narrow, save_matconvnet
from tests.helpers.objects import gso_poses, write_object
from tests.helpers.tiny_export import save_tiny_export

SIZE = (48, 32)  # width and height of pictures
F = (40.0, 41.0, 23.5, 16.0)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A format. `write` fills a folder, `read` gives arrays, text and numbers of it.

    With `sums` any damage is noticed, with `ends` at least that something is missing at the end.
    `damage` are patterns of the files to be damaged; quick and slow tests damage so many times.
    `runs` begin the audit events of what the reader runs by itself.
    """

    name: str
    write: Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    sums: bool = False
    ends: bool = True
    damage: tuple[str, ...] = ("*",)
    quick: int = 60
    slow: int = 600
    runs: tuple[str, ...] = ()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    pixels = np.stack([5 * x, 7 * y, 3 * (x + y)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def camera() -> PosedCamera:
    return PosedCamera(np.eye(4), F, *SIZE)


# Chunks of RealEstate10K, and weights.


def clip(key: str) -> dict[str, Any]:
    tensor = np.frombuffer(picture("JPEG"), np.uint8)
    cameras = np.zeros((2, 18), np.float32)
    cameras[:, :4] = (0.8, 1.2, 0.5, 0.5)
    cameras[:, 6:] = np.eye(4)[:3].ravel()
    times = np.arange(2) * 33_333
    return {"key": key, "url": "u", "timestamps": times, "cameras": cameras, "images": [tensor] * 2}


def write_chunk(folder: pathlib.Path) -> None:
    torch_zip.save(folder / "0.torch", [clip("a"), clip("b")])


def read_chunk(folder: pathlib.Path) -> Any:
    clips = pixelsplat.read_chunk(folder / "0.torch", verify=True)
    return [dataclasses.asdict(pixelsplat.check_clip(fields, verify=True)) for _, fields in clips]


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"layer.{i}.weight": rng.normal(size=(4, 6)).astype(np.float32) for i in range(3)}


def write_safetensors(folder: pathlib.Path) -> None:
    metadata = {"format": "pt", CHECKSUM: fingerprint_all(weights())}
    safetensors.numpy.save_file(weights(), folder / "w.safetensors", metadata=metadata)


def write_shards(folder: pathlib.Path) -> None:
    where = {}
    for i, (name, array) in enumerate(weights().items(), 1):
        where[name] = f"w-{i:05d}-of-00003.safetensors"
        safetensors.numpy.save_file({name: array}, folder / where[name])
    index = {"metadata": {}, "weight_map": where}
    (folder / "w.safetensors.index.json").write_text(json.dumps(index))


def read_weights(folder: pathlib.Path) -> Any:
    [file] = folder.iterdir()
    return read_checkpoint(file).arrays


def read_export(folder: pathlib.Path) -> Any:
    import lvsm_jax

    return {name: np.asarray(x) for name, x in named_leaves(lvsm_jax.load(folder / "e")).items()}


PLAN = ((4, 4), (4, 4), (4, 4, 4, 4), (4, 4, 4, 4), (4, 4))  # of a narrow VGG-19


def write_vgg(folder: pathlib.Path, *, compressed: bool) -> None:
    layers = [layer for block in narrow((2, 2, 4, 4, 2), seed=3) for layer in block]
    save_matconvnet(folder / "vgg.mat", layers, do_compression=compressed)


def read_vgg(folder: pathlib.Path) -> Any:
    with mock.patch.object(perceptual, "PLAN", PLAN):
        weights = perceptual.load_perceptual(folder / "vgg.mat").vgg
    return [[[layer["kernel"], layer["bias"]] for layer in block] for block in weights]


TEACHER = "dinov2_vits14"
DINO = DinoConfig(num_layers=1, width=8, head_dim=4, patch_size=2, num_special=1, position_grid=2)


def dino_weights() -> dict[str, np.ndarray]:
    rng, shapes = np.random.default_rng(4), dino_files._shapes(DINO)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def read_dino(folder: pathlib.Path) -> Any:
    [file] = folder.iterdir()
    with mock.patch.dict(dino_files.TEACHERS, {TEACHER: DINO}):
        try:
            teacher = dino_files.load_teacher(file, TEACHER)
        except UserError as error:  # which lists what is wrong, one below the other
            raise UserError(str(error).replace("\n  ", " ")) from error
    return {name: np.asarray(x) for name, x in named_leaves(teacher).items()}


def write_tree(folder: pathlib.Path) -> None:
    tree = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": {"bias": np.zeros(2, np.float32)}}
    data = pickle.dumps(tree, protocol=3)
    (folder / "tree").write_bytes(data.replace(b"numpy._core", b"numpy.core"))


# Datasets.


def write_dataset(folder: pathlib.Path) -> None:
    clips = [tiny_dataset.clip_of(number, 3) for number in range(3)]
    tiny_dataset.write_dataset(folder, clips, "train", num_shards=2)


def read_dataset(folder: pathlib.Path) -> Any:
    reader = SplitReader(folder, "train")
    try:
        frames = reader.frames(range(len(reader)))
        return [vars(reader.scenes), *map(dataclasses.asdict, frames)]
    finally:
        reader.close()


def read_bucket(folder: pathlib.Path) -> Any:
    records = BucketRecords(sorted(folder.glob("*.array_record*"))[0])
    return records.read(range(records.num_records()))


def write_index(folder: pathlib.Path) -> None:
    entries = {"a": {"context": [0, 9], "target": [1, 2, 3]}, "b": None}
    (folder / "index.json").write_text(json.dumps(entries))


# Scenes.


def write_cameras(folder: pathlib.Path) -> None:
    frames = []
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture("PNG"))
        pose = np.eye(4).tolist()
        frames.append({"file": name, "w": SIZE[0], "h": SIZE[1], "fxfycxcy": F, "c2w": pose})
    (folder / "cameras.json").write_text(json.dumps({"frames": frames}))


def write_transforms(folder: pathlib.Path) -> None:
    (folder / "a.png").write_bytes(picture("PNG"))
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    top = {"fl_x": 40.5, "fl_y": 41.5, "cx": 24.5, "cy": 16.5, "w": 48, "h": 32, "k1": 0.0}
    (folder / "transforms.json").write_text(json.dumps({**top, "frames": [frame]}))


def write_opencv_cameras(folder: pathlib.Path) -> None:
    (folder / "a.png").write_bytes(picture("PNG"))
    frame = {"file_path": "a.png", "w": SIZE[0], "h": SIZE[1], "w2c": np.eye(4).tolist()}
    frame |= dict(zip(("fx", "fy", "cx", "cy"), F, strict=True))
    (folder / "opencv_cameras.json").write_text(json.dumps({"frames": [frame]}))


def write_inria(folder: pathlib.Path) -> None:
    (folder / "a.png").write_bytes(picture("PNG"))
    one = {"id": 0, "img_name": "a", "width": SIZE[0], "height": SIZE[1], "fx": F[0], "fy": F[1]}
    one |= {"position": [0.5, 0.25, 1.5], "rotation": np.eye(3).tolist()}
    (folder / "cameras.json").write_text(json.dumps([one]))


def write_llff(folder: pathlib.Path) -> None:
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(picture("PNG"))
    c2w = np.array([[0, 1, 0, 0.5], [1, 0, 0, 0.25], [0, 0, -1, 1.5]], float)
    matrix = np.concatenate([c2w, np.array([[SIZE[1]], [SIZE[0]], [F[0]]])], axis=1)
    np.save(folder / "poses_bounds.npy", np.tile([*matrix.ravel(), 0.5, 9.0], (2, 1)))


def write_polycam(folder: pathlib.Path) -> None:
    cameras, images = folder / "keyframes" / "cameras", folder / "keyframes" / "images"
    for made in (cameras, images):
        made.mkdir(parents=True)
    (images / "a.png").write_bytes(picture("PNG"))
    pose = {f"t_{i}{j}": float(i == j) for i in range(3) for j in range(4)}
    size = {"width": SIZE[0], "height": SIZE[1]}
    intrinsics = dict(zip(("fx", "fy", "cx", "cy"), F, strict=True))
    (cameras / "a.json").write_text(json.dumps(size | intrinsics | pose))


def write_record3d(folder: pathlib.Path) -> None:
    (folder / "EXR_RGBD" / "rgb").mkdir(parents=True)
    (folder / "EXR_RGBD" / "rgb" / "0.png").write_bytes(picture("PNG"))
    matrix = [F[0], 0, 0, 0, F[1], 0, F[2], F[3], 1]
    content = {"w": SIZE[0], "h": SIZE[1], "K": matrix, "poses": [[0, 0, 0, 1, 0.5, 0.25, 1.5]]}
    (folder / "EXR_RGBD" / "metadata").write_text(json.dumps(content))


def read_folder(folder: pathlib.Path) -> Any:
    def plain(posed: PosedCamera) -> Any:
        return [posed.c2w, posed.fxfycxcy, posed.width, posed.height]

    return [[one.name, plain(one.camera)] for one in read_scene(folder).photographs]


def read_views(folder: pathlib.Path, layout: str) -> Any:
    """The views of an object in a layout."""
    found, _ = read_object(folder, layout, None if layout == "gobjaverse" else 50.0)
    return [[one.name, vars(one.camera)] for one in found.photographs], found.notes


def write_stated(folder: pathlib.Path) -> None:
    write_alpha(folder, DatasetAlpha(Alpha((255, 255, 255), (0, 0, 0)), True))


def write_colmap(folder: pathlib.Path, ending: str) -> None:
    import pycolmap

    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 3
    options.num_points3D, options.camera_width, options.camera_height = 5, *SIZE
    options.camera_model_id, options.camera_params = pycolmap.CameraModelId.PINHOLE, list(F)
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    (folder / "images").mkdir()
    for image in model.images.values():
        (folder / "images" / image.name).write_bytes(picture("PNG"))
    (folder / "sparse").mkdir()
    write = model.write_binary if ending == "bin" else model.write_text
    write(str(folder / "sparse"))


# Pictures and uploads.


def read_picture(folder: pathlib.Path) -> Any:
    [file] = folder.iterdir()
    return Photograph.open(file, camera()).pixels


def write_upload(folder: pathlib.Path) -> None:
    pose = {"file": "a.png", "w": SIZE[0], "h": SIZE[1], "fxfycxcy": F, "c2w": np.eye(4).tolist()}
    with zipfile.ZipFile(folder / "up.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cameras.json", json.dumps({"frames": [pose]}))
        archive.writestr("a.png", picture("PNG"))


def write_upload_of_another_program(folder: pathlib.Path) -> None:
    size = {"w": SIZE[0], "h": SIZE[1], "fl_x": F[0], "cx": F[2], "cy": F[3], "k1": 0.01}
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    (folder / "transforms.json").write_text(json.dumps(size | {"frames": [frame]}))
    (folder / "a.png").write_bytes(picture("PNG"))


def read_upload_of_another_program(folder: pathlib.Path) -> Any:
    """The archive is made of damaged files: else its sums would find the damage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("transforms.json", "a.png"):
            archive.write(folder / name, name)
    return take_upload(file.getvalue())


def read_upload(folder: pathlib.Path) -> Any:
    return take_upload((folder / "up.zip").read_bytes())


def take_upload(content: bytes) -> Any:
    uploads = Uploads(Limits(bytes=2**20, photographs=4, pixels=10**6))
    try:
        taken = uploads.receive("up.zip", content)
        return [one.load().pixels for one in taken]
    finally:
        uploads.close()


def file_writer(name: str, content: Callable[[], bytes]) -> Callable[[pathlib.Path], Any]:
    return lambda folder: (folder / name).write_bytes(content())


def json_bytes(content: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(content).encode()


_PATH = {"frames": [{"w": 48, "h": 32, "fxfycxcy": F, "w2c": np.eye(4).tolist()}] * 2}
_POPEN = (f"subprocess.Popen('{sys.executable}'", "os.posix_spawn", "pickle.find_class('numpy")

READERS = (
    Reader("chunk", write_chunk, read_chunk, sums=True),
    Reader("pt", lambda f: torch_zip.save(f / "w.pt", weights()), read_weights, sums=True),
    Reader("safetensors", write_safetensors, read_weights, sums=True),
    Reader(
        *("shards", write_shards, lambda folder: read_checkpoint(folder).arrays),
        damage=("*.json",),
        sums=True,
    ),
    Reader(
        *("export", lambda folder: save_tiny_export(folder / "e"), read_export),
        sums=True,
        quick=0,  # tests/weights/test_exports.py has some
        slow=60,
    ),
    Reader(
        *("vgg", lambda folder: write_vgg(folder, compressed=False), read_vgg),
        ends=False,  # after the last convolution there is nothing that is read
        quick=30,
        slow=300,
    ),
    Reader(
        *("vgg_compressed", lambda folder: write_vgg(folder, compressed=True), read_vgg),
        quick=30,
        slow=300,
    ),
    Reader(
        *("dino", lambda f: torch_zip.save(f / "w.pth", dino_weights()), read_dino),
        sums=True,
        quick=30,
        slow=300,
    ),
    Reader(
        "dino_safetensors",
        lambda f: safetensors.numpy.save_file(dino_weights(), f / "w.safetensors"),
        read_dino,
        quick=30,
        slow=300,
    ),
    Reader("lpips", write_tree, lambda folder: read_tree(folder / "tree")),
    Reader("dataset", write_dataset, read_dataset, sums=True, quick=40, slow=900),
    Reader("bucket", write_dataset, read_bucket, damage=("*.array_record*",), ends=False),
    Reader("index", write_index, lambda folder: _entries(folder / "index.json")),
    Reader("json", write_index, lambda folder: read_json(folder / "index.json")),
    Reader(
        *("path", file_writer("path.json", json_bytes(_PATH))),
        lambda folder: [vars(one) for one in read_camera_path(folder / "path.json")],
    ),
    Reader("cameras", write_cameras, read_folder, damage=("*.json",)),
    Reader("transforms", write_transforms, read_folder, damage=("*.json",)),
    Reader("opencv_cameras", write_opencv_cameras, read_folder, damage=("*.json",), quick=30),
    Reader("inria", write_inria, read_folder, damage=("*.json",), quick=30),
    Reader("llff", write_llff, read_folder, damage=("*.npy",)),
    *(
        Reader(
            *(layout, lambda folder, of=layout: write_object(folder, of, gso_poses()[:3])),
            lambda folder, of=layout: read_views(folder, of),
            damage=(damage,),
            quick=20,
            slow=300,
        )
        for layout, damage in (("zero123", "*.npy"), ("lgm", "*.txt"), ("gobjaverse", "*.json"))
    ),
    Reader("alpha", write_stated, lambda folder: dataclasses.asdict(read_alpha(folder)), quick=30),
    Reader("polycam", write_polycam, read_folder, damage=("*.json",), quick=30),
    Reader("record3d", write_record3d, read_folder, damage=("metadata",), quick=30),
    Reader(
        *("colmap", lambda folder: write_colmap(folder, "bin"), read_folder),
        damage=("sparse/*.bin",),
        quick=2,
        slow=150,
        runs=_POPEN,
    ),
    Reader(
        *("colmap_text", lambda folder: write_colmap(folder, "txt"), read_folder),
        damage=("sparse/*.txt",),
        quick=0,
        slow=100,
        ends=False,  # text that ends after a line is whole
        runs=_POPEN,
    ),
    *(
        Reader(kind.lower(), file_writer(f"p.{kind}", lambda k=kind: picture(k)), read_picture)
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")
    ),
    Reader(
        "upload", write_upload, read_upload, sums=True, runs=("os.remove", "os.rmdir", "shutil")
    ),
    Reader(
        "upload_of_another_program",
        write_upload_of_another_program,
        read_upload_of_another_program,
        damage=("transforms.json",),
        runs=("os.remove", "os.rmdir", "shutil"),
    ),
)


def _entries(file: pathlib.Path) -> Any:
    return {key: entry and vars(entry) for key, entry in read_index(epath.Path(file)).items()}
