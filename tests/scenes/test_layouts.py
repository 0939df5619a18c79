"""Folders as other tools write them: real ones where they are there, and ones rebuilt."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from lvsm_jax.scenes.readers import SceneError, read_scene

from . import test_readers
from .test_readers import HEIGHT, NAMES, WIDTH, images, matrix, some_views, write_json

__all__ = ["images"]  # the fixture

WHITE = (255, 255, 255)
NERFSTUDIO = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
EQUIVALENT = {  # places of the same four views, and the change of world that the tool makes
    "opencv_cameras": np.eye(4),
    "nerf_synthetic": np.eye(4),
    "nerfstudio": NERFSTUDIO,
    "polycam": NERFSTUDIO,
    "record3d": NERFSTUDIO,
}


@pytest.mark.parametrize("layout", EQUIVALENT)
def test_the_same_views_in_every_layout(shared_data, layout):
    root = shared_data / "layouts" / "equivalent"
    expected = read_scene(root / "expected").photographs
    ours = read_scene(root / layout, background=WHITE).photographs
    assert len(ours) == len(expected) == 4
    for photograph, same in zip(ours, expected, strict=True):
        camera, other = photograph.camera, same.camera
        np.testing.assert_allclose(camera.fxfycxcy, other.fxfycxcy, rtol=1e-6)
        np.testing.assert_allclose(camera.c2w, EQUIVALENT[layout] @ other.c2w, atol=2e-6)
        difference = photograph.load().pixels.astype(int) - same.load().pixels
        assert np.abs(difference).mean() < 1.5  # JPEG, in two of them


def test_nerfstudios_pyramid_with_a_lens(shared_data):
    scene = read_scene(shared_data / "layouts" / "nerfstudio_processed")
    undistorted, smaller = scene.notes
    assert "3 images are undistorted" in undistorted
    assert "480×270, 1/4" in smaller
    photograph = scene.photographs[0]
    np.testing.assert_allclose(photograph.lens.fxfycxcy[0], 1676.0808995417506 / 4)
    assert 0.9 < photograph.camera.fxfycxcy[0] / photograph.lens.fxfycxcy[0] < 1.1
    assert photograph.load().pixels.shape == (270, 480, 3)


def test_lists_of_opencv_cameras(shared_data):
    desk = read_scene(shared_data / "layouts" / "opencv_cameras_scene")
    assert [len(desk.photographs), desk.notes] == [8, []]
    toy = read_scene(shared_data / "gso_sample" / "gso_toy", background=WHITE)
    assert len(toy.photographs) == 32
    picture = toy.photographs[0]
    with Image.open(picture.source) as image:  # whose colours lie on white already
        np.testing.assert_array_equal(picture.load().pixels, np.asarray(image)[..., :3])
    forward = np.stack([photograph.camera.c2w[:3, 2] for photograph in toy.photographs])
    places = np.stack([photograph.camera.c2w[:3, 3] for photograph in toy.photographs])
    np.testing.assert_allclose(-places / 2.7, forward, atol=1e-6)  # towards the origin


def test_blenders_names_have_no_suffix(shared_data):
    tiny = shared_data / "layouts" / "nerf_synthetic_tiny"
    scene = read_scene(tiny)
    with pytest.raises(ValueError, match=r"transparent in places.*--background"):
        scene.photographs[0].load()
    assert (
        read_scene(tiny, background=WHITE).photographs[0].load().pixels[0, 0].tolist() == [255] * 3
    )


def check_places(scene, tolerance=1e-9):
    """That these are the cameras of `some_views`, whose principal points are not kept."""
    for photograph, view in zip(scene.photographs, some_views(), strict=True):
        right, down, forward, place, _ = view
        expected = matrix(right, down, forward, place)
        np.testing.assert_allclose(photograph.camera.c2w, expected, atol=tolerance)
        size = photograph.camera.width, photograph.camera.height
        np.testing.assert_allclose(photograph.camera.fxfycxcy[2:], np.array(size) / 2)


def write_llff(folder, scale=1):
    rows = []
    for right, down, forward, place, (f, *_) in some_views():
        hwf = [HEIGHT * scale, WIDTH * scale, f * scale]
        rows.append([*np.stack([down, right, -forward, place, hwf], axis=1).ravel(), 0.5, 9.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))


def test_llff(images):
    for old, new in zip(NAMES, ("a.png", "b.jpg", "c.png"), strict=True):
        (images / old).rename(images / "images" / new)
    write_llff(images)
    scene = read_scene(images)
    check_places(scene)
    assert [p.name for p in scene.photographs] == ["a.png", "b.jpg", "c.png"]
    assert [p.camera.fxfycxcy[0] for p in scene.photographs] == [40, 41, 42]
    (images / "images").rename(images / "images_8")
    write_llff(images, scale=8)
    scene = read_scene(images)
    assert "1/8" in scene.notes[0]
    assert [p.camera.fxfycxcy[0] for p in scene.photographs] == [40, 41, 42]
    (images / "images_8" / "d.png").write_bytes((images / "images_8" / "a.png").read_bytes())
    with pytest.raises(SceneError, match=r"has 3 poses, but .*images_8 4 images"):
        read_scene(images)
    np.save(images / "poses_bounds.npy", np.zeros((3, 15)))
    with pytest.raises(SceneError, match=r"shape \(3, 15\), expected \[n, 17\]"):
        read_scene(images)
    (images / "poses_bounds.npy").write_bytes(b"no array")
    with pytest.raises(SceneError, match="no array of NumPy"):
        read_scene(images)
    np.save(images / "poses_bounds.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(SceneError, match="no array of NumPy: Object arrays cannot be loaded"):
        read_scene(images)


def test_gaussian_splattings_cameras(images):
    """`rotation` has the camera's axes in its columns; names have lost their suffix."""
    cameras = []
    for i, (right, down, forward, place, (fx, fy, *_)) in enumerate(some_views()):
        rotation = np.stack([right, down, forward], axis=1).tolist()
        name = NAMES[i].removeprefix("images/").rpartition(".")[0]
        camera = {"id": i, "img_name": name, "width": WIDTH, "height": HEIGHT, "fx": fx, "fy": fy}
        cameras.append(camera | {"position": place.tolist(), "rotation": rotation})
    model = images / "output"
    model.mkdir()
    write_json(model / "cameras.json", cameras[::-1])
    with pytest.raises(SceneError, match="none of its images is in"):
        read_scene(model)
    scene = read_scene(model, images=images / "images")
    check_places(scene)
    assert [p.name for p in scene.photographs] == ["p1", "p2", "p10"]
    del cameras[0]["rotation"][2]
    write_json(model / "cameras.json", cameras)
    with pytest.raises(SceneError, match=r"\[0\]: 'rotation' is a list of 2"):
        read_scene(model, images=images / "images")


def test_dl3dv(images, tmp_path_factory):
    """A folder `nerfstudio` with one OPENCV lens, and pictures of a quarter of its size."""
    folder = tmp_path_factory.mktemp("dl3dv")
    shutil.copytree(images / "images", folder / "nerfstudio" / "images_4")
    content = test_readers.transforms_json(w=4 * WIDTH, h=4 * HEIGHT, k1=0.02, fl_y=164.0, cx=94.0)
    for frame in content["frames"]:
        frame["fl_x"], frame["cy"] = 4 * frame["fl_x"], 4 * frame["cy"]
    write_json(folder / "nerfstudio" / "transforms.json", content)
    scene = read_scene(folder)
    assert [photograph.name for photograph in scene.photographs] == NAMES
    for photograph, (*_, fxfycxcy) in zip(scene.photographs, some_views(), strict=True):
        np.testing.assert_allclose(photograph.lens.fxfycxcy, fxfycxcy)
        assert photograph.load().pixels.shape == (HEIGHT, WIDTH, 3)


def test_levels_that_do_not_divide_are_scaled_by_their_plain_ratio(images):
    content = test_readers.cameras_json(
        w=2 * WIDTH + 1, h=2 * HEIGHT - 1, fxfycxcy=[97, 63, 48.5, 31.5]
    )
    write_json(images / "cameras.json", content)
    camera = read_scene(images).photographs[1].camera
    np.testing.assert_allclose(camera.fxfycxcy, [48, 32, 24, 16])


def polycam_and_record3d(images):
    keyframes = images / "keyframes"
    (keyframes / "corrected_cameras").mkdir(parents=True)
    (keyframes / "corrected_images").mkdir()
    (images / "EXR_RGBD" / "rgb").mkdir(parents=True)
    poses = []
    for i, (right, down, forward, place, fxfycxcy) in enumerate(some_views()):
        c2w = matrix(right, -down, -forward, place)
        values = dict(zip(("fx", "fy", "cx", "cy"), fxfycxcy, strict=True))
        values |= {"width": WIDTH, "height": HEIGHT, "blur_score": 100.0}
        values |= {f"t_{row}{column}": c2w[row, column] for row in range(3) for column in range(4)}
        write_json(keyframes / "corrected_cameras" / f"{100 + i}.json", values)
        poses.append([*Rotation.from_matrix(c2w[:3, :3]).as_quat(), *place])
        with Image.open(images / NAMES[i]) as image:
            image.save(keyframes / "corrected_images" / f"{100 + i}.jpg")
            image.save(images / "EXR_RGBD" / "rgb" / f"{i}.jpg")
    matrix_k = [40, 0, 0, 0, 41, 0, 23, 16, 1]
    write_json(
        images / "EXR_RGBD" / "metadata", {"w": WIDTH, "h": HEIGHT, "K": matrix_k, "poses": poses}
    )
    return keyframes, images / "EXR_RGBD"


def test_polycam_and_record3d(images):
    keyframes, record3d = polycam_and_record3d(images)
    for folder in (keyframes, record3d):
        scene = read_scene(folder)
        for photograph, view in zip(scene.photographs, some_views(), strict=True):
            np.testing.assert_allclose(photograph.camera.c2w, matrix(*view[:4]), atol=1e-9)
    np.testing.assert_array_equal(scene.photographs[0].camera.fxfycxcy, [40, 41, 23, 16])
    values = json.loads((record3d / "metadata").read_text())
    values["K"] = np.reshape(values["K"], (3, 3)).T.ravel().tolist()
    write_json(record3d / "metadata", values)
    with pytest.raises(SceneError, match="column after column"):
        read_scene(record3d)


def test_photographs_without_cameras_say_what_to_type(images):
    with pytest.raises(SceneError, match=r"images has 3 photographs, but no cameras: .* colmap"):
        read_scene(images)
    video = images / "clip.MP4"
    video.write_bytes(b"")
    with pytest.raises(SceneError, match="is a video without cameras"):
        read_scene(video)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("images/p2", "images/p2.JPG"),
        ("images/p2.png", "images/p2.jpg"),
        ("images\\p 2.jpg", "images/p 2.jpg"),
        ("images/Café.jpg", "images/Cafe\u0301.jpg"),
        ("images/Cafe\u0301", "images/Café.jpeg"),
        ("images/图 1", "images/图 1.jpg"),
        ("images/p2.jpg", "images_2/p2.jpg"),
        ("images/p2.png", "images_4/p2.jpg"),
    ],
)
def test_names_of_files(images, written, there):
    (images / there).parent.mkdir(exist_ok=True)
    (images / NAMES[1]).rename(images / there)
    write_json(images / "cameras.json", test_readers.cameras_json(file=written))
    scene = read_scene(images)
    assert scene.photographs[1].name == written
    assert scene.photographs[1].source == images / there


def test_names_that_could_be_of_several_files(images):
    for suffix in ("jpg", "png"):
        (images / NAMES[1]).with_name(f"q.{suffix}").write_bytes((images / NAMES[1]).read_bytes())
    write_json(images / "cameras.json", test_readers.cameras_json(file="images/q"))
    with pytest.raises(SceneError, match=r"which of .*q\.jpg, .*q\.png\?"):
        read_scene(images)


@pytest.mark.parametrize(
    ("principal", "message"),
    [((60, 40), "of a larger picture"), ((0.5, 0.5), "shares of its sides")],
)
def test_principal_points_that_cannot_be(images, principal, message):
    content = test_readers.cameras_json(fxfycxcy=[40, 40, *principal])
    write_json(images / "cameras.json", content)
    with pytest.raises(SceneError, match=rf"principal point of images/p2.jpg is .*{message}"):
        read_scene(images)


def edited(change, *names):
    def edit(folder):
        for name in names:
            text = (folder / name).read_text()
            (folder / name).write_bytes(change(text).encode())

    return edit


def longer(text):
    """Quaternions of length 2."""
    lines = [line.split() for line in text.splitlines()]
    for parts in lines:
        if len(parts) == 10:
            parts[1:5] = [repr(2 * float(part)) for part in parts[1:5]]
    return "\n".join(map(" ".join, lines)) + "\n"


@test_readers.needs_pycolmap
@pytest.mark.parametrize(
    "edit",
    [
        edited(lambda text: "\ufeff" + text.replace("\n", "\r\n"), "cameras.txt", "images.txt"),
        edited(lambda text: text.replace("\n\n", "\n"), "images.txt"),
        edited(lambda text: text.replace("\n\n", "\n1 2 -1 3 4 -1 5 6 -1 7 8 -1\n"), "images.txt"),
        edited(lambda text: text.replace(" ", " \t"), "cameras.txt", "images.txt"),
        edited(longer, "images.txt"),
        lambda folder: (folder / "points3D.txt").unlink(),
    ],
    ids=["windows", "no_points", "points", "blanks", "quaternions", "no_points3D"],
)
def test_colmap_text_that_is_not_canonical(images, edit):
    edit(test_readers.write_colmap(images / "sparse" / "0"))
    test_readers.check(read_scene(images), 1e-9, prefix="images/")


@test_readers.needs_pycolmap
@pytest.mark.parametrize("name", ["cameras.txt", "images.txt"])
def test_colmap_text_that_ends_in_a_line_may_be_cut(images, name):
    """Whatever is left of its last number is a number too."""
    folder = test_readers.write_colmap(images / "sparse" / "0")
    edited(lambda text: text.rstrip()[:-1], name)(folder)
    with pytest.raises(SceneError, match=rf"{name}: its last line has no end: it is cut, or lacks"):
        read_scene(images)


def test_one_scene_of_three_cameras(tmp_path):
    """Landscape, portrait that EXIF turns, and a small square behind a lens: one world.

    A bright spot in each picture is where its camera sees one point of the world.
    """
    point = np.array([0.1, -0.05, 0.2])
    cameras = [((96, 64), 80.0, {}), ((64, 96), 70.0, {}), ((48, 48), 50.0, {"k1": -0.2})]
    frames = []
    for i, ((width, height), focal, lens) in enumerate(cameras):
        right, down, forward, place, _ = some_views()[i]
        x, y, z = np.linalg.inv(matrix(right, down, forward, place))[:3] @ [*point, 1]
        ray = np.array([x, y]) / z
        bent = ray * (1 + lens.get("k1", 0) * (ray @ ray))
        u, v = bent * focal + np.array([width, height]) / 2
        columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        spot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 8)
        image, exif = Image.fromarray(spot.astype(np.uint8)).convert("RGB"), Image.Exif()
        if i == 1:  # stored lying
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(tmp_path / f"{i}.png", exif=exif)
        c2w = matrix(right, -down, -forward, place).tolist()
        frame = {"file_path": f"{i}.png", "w": width, "h": height, "fl_x": focal}
        frames.append(frame | lens | {"transform_matrix": c2w})
    write_json(tmp_path / "transforms.json", {"frames": frames})
    scene = read_scene(tmp_path)
    assert [(p.camera.width, p.camera.height) for p in scene.photographs] == [c[0] for c in cameras]
    for photograph in scene.photographs:
        for size in ((32, 32), (32, 48)):  # as the model sees them
            pixels, camera = (
                photograph.load().cropped_to(*size),
                photograph.camera.cropped_to(*size),
            )
            light = pixels[..., 0].astype(float)
            seen = [
                light.sum(axis) @ (np.arange(n) + 0.5) / light.sum()
                for axis, n in ((0, size[1]), (1, size[0]))
            ]
            x, y, z = camera.w2c[:3] @ [*point, 1]
            fx, fy, cx, cy = camera.fxfycxcy
            np.testing.assert_allclose(seen, [cx + fx * x / z, cy + fy * y / z], atol=0.25)
