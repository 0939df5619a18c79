"""Scenes: the same cameras from every format, and nothing bad, odd or missing passes unseen."""

import importlib.util
import json
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from lvsm_jax.scenes.lens import Distortion
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import SceneError, read_scene
from lvsm_jax.scenes.readers.scene import natural_order

WIDTH, HEIGHT = 48, 32
POINT = np.array([0.2, -0.1, 0.3])  # that all cameras see
NAMES = ["images/p1.png", "images/p2.jpg", "images/p10.png"]

needs_pycolmap = pytest.mark.skipif(
    importlib.util.find_spec("pycolmap") is None, reason="pycolmap is not installed"
)


def some_views():
    """Right, down, forward, position and intrinsics of three cameras, by geometry alone."""
    views = []
    for i, place in enumerate(np.array([[2.0, 0, 0.5], [1.5, 1.2, 0.7], [0.3, 2.1, 0.2]])):
        forward = POINT + np.array([0.05, 0.1 * i, 0]) - place
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        views.append((right, np.cross(forward, right), forward, place, (40 + i, 41, 23.5, 16 + i)))
    return views


def matrix(*columns):
    result = np.eye(4)
    result[:3] = np.stack(columns, axis=1)
    return result


def pixel(c2w_opengl, fxfycxcy):
    """Where an OpenGL camera (y up, looking along -z) sees the point; y of pixels is down."""
    x, y, z = (np.linalg.inv(c2w_opengl) @ [*POINT, 1])[:3]
    fx, fy, cx, cy = fxfycxcy
    return [cx + fx * x / -z, cy + fy * -y / -z]


@pytest.fixture
def images(tmp_path):
    """A folder with the images alone, each of one colour."""
    (tmp_path / "images").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (WIDTH, HEIGHT), (40 * i, 100, 200)).save(tmp_path / name)
    return tmp_path


def cameras_json(**changes):
    """The content of a cameras.json; `changes` are to its second frame."""
    frames = []
    for name, (right, down, forward, place, fxfycxcy) in zip(NAMES, some_views(), strict=True):
        w2c = np.linalg.inv(matrix(right, down, forward, place)).tolist()
        frames.append({"file": name, "w": WIDTH, "h": HEIGHT, "fxfycxcy": fxfycxcy, "w2c": w2c})
    frames[1].update(changes)
    return {"frames": frames}


def transforms_json(**changes):
    """The content of a transforms.json; `changes` are to its top."""
    frames = []
    for name, (right, down, forward, place, (fx, _, _, cy)) in zip(
        NAMES, some_views(), strict=True
    ):
        c2w = matrix(right, -down, -forward, place).tolist()
        frames.append({"file_path": f"./{name}", "transform_matrix": c2w, "fl_x": fx, "cy": cy})
    top = {"camera_model": "OPENCV", "w": WIDTH, "h": HEIGHT, "fl_y": 41.0, "cx": 23.5, "k1": 0.0}
    return {**top, "frames": frames[::-1], **changes}


def write_json(file, content):
    file.write_text(json.dumps(content))
    return file


def write_colmap(folder, cameras=None, names=NAMES):
    """A COLMAP text model."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, poses = [], []
    for i, (right, down, forward, place, values) in enumerate(some_views(), start=1):
        w2c = np.linalg.inv(matrix(right, down, forward, place))
        x, y, z, w = Rotation.from_matrix(w2c[:3, :3]).as_quat()
        numbers = " ".join(repr(float(value)) for value in (w, x, y, z, *w2c[:3, 3]))
        poses.append(f"{i} {numbers} {i} {names[i - 1].removeprefix('images/')}\n\n")
        lines.append(f"{i} PINHOLE {WIDTH} {HEIGHT} {' '.join(map(str, values))}\n")
    (folder / "cameras.txt").write_text("# cameras\n" + "".join(cameras or lines))
    (folder / "images.txt").write_text("# images\n" + "".join(poses[::-1]))
    (folder / "points3D.txt").write_text("")
    return folder


def check(scene, tolerance=1e-9, prefix=""):
    """That these are the three views, with their images."""
    assert [prefix + photograph.name for photograph in scene.photographs] == NAMES
    assert scene.notes == []
    for i, (photograph, view) in enumerate(zip(scene.photographs, some_views(), strict=True)):
        right, down, forward, place, fxfycxcy = view
        camera = photograph.camera
        np.testing.assert_allclose(
            camera.c2w, matrix(right, down, forward, place), rtol=0, atol=tolerance
        )
        np.testing.assert_allclose(camera.fxfycxcy, fxfycxcy)
        assert (camera.width, camera.height) == (WIDTH, HEIGHT)
        picture = photograph.load()
        assert picture.name == photograph.name
        np.testing.assert_allclose(picture.pixels[4, 4].astype(int), [40 * i, 100, 200], atol=3)


def test_cameras_json(images):
    write_json(images / "cameras.json", cameras_json())
    check(read_scene(images))
    check(read_scene(images / "cameras.json"))


def test_transforms_json_is_the_same_scene(images):
    write_json(images / "transforms.json", transforms_json())
    scene = read_scene(images)
    check(scene)
    for photograph, view in zip(scene.photographs, some_views(), strict=True):
        right, down, forward, place, fxfycxcy = view
        x, y, z = photograph.camera.w2c[:3] @ [*POINT, 1]
        fx, fy, cx, cy = photograph.camera.fxfycxcy
        seen = np.array([cx + fx * x / z, cy + fy * y / z])
        np.testing.assert_allclose(seen, pixel(matrix(right, -down, -forward, place), fxfycxcy))
        assert z > 0 and (seen > 0).all() and (seen < [WIDTH, HEIGHT]).all()


@needs_pycolmap
@pytest.mark.parametrize("place", ["", "sparse", "sparse/0", "colmap/sparse/0"])
def test_colmap_text_is_the_same_scene(images, place):
    write_colmap(images / place)
    check(read_scene(images), 1e-9, prefix="images/")
    if place in ("sparse", "sparse/0"):
        check(read_scene(images / place), 1e-9, prefix="images/")


@needs_pycolmap
def test_colmap_binary_is_the_same_scene(images, tmp_path):
    import pycolmap

    text = write_colmap(tmp_path / "text")
    (images / "sparse" / "0").mkdir(parents=True)
    pycolmap.Reconstruction(text).write_binary(images / "sparse" / "0")
    shutil.rmtree(text)
    assert (images / "sparse" / "0" / "images.bin").exists()
    check(read_scene(images), 1e-9, prefix="images/")


@needs_pycolmap
def test_colmap_damaged_files_are_errors(images, tmp_path):
    """Of some of these COLMAP's reader ends the process."""
    import pycolmap

    text = write_colmap(tmp_path / "text")
    model = images / "sparse" / "0"
    model.mkdir(parents=True)
    pycolmap.Reconstruction(text).write_binary(model)
    whole = (model / "images.bin").read_bytes()
    for kept in (5, len(whole) // 2):
        (model / "images.bin").write_bytes(whole[:kept])
        with pytest.raises(SceneError, match="no COLMAP model that can be read"):
            read_scene(images)


@needs_pycolmap
def test_colmap_lenses(images):
    pinhole = f"SIMPLE_RADIAL {WIDTH} {HEIGHT} 40 23.5 16 0\n"
    bent = f"OPENCV {WIDTH} {HEIGHT} 40 41 23.5 16 0 0.01 0 0\n"
    fisheye = f"OPENCV_FISHEYE {WIDTH} {HEIGHT} 40 41 23.5 16 0 0 0 0\n"
    write_colmap(images, [f"{i} {pinhole}" for i in (1, 2, 3)])
    fxfycxcy = read_scene(images)["p2.jpg"].camera.fxfycxcy
    np.testing.assert_array_equal(fxfycxcy, [40, 40, 23.5, 16])
    write_colmap(images, [f"1 {pinhole}", f"2 {bent}", f"3 {pinhole}"])
    scene = read_scene(images)
    assert scene.notes == ["1 images are undistorted when they are read: p2.jpg"]
    assert scene["p1.png"].lens is None
    assert scene["p2.jpg"].lens.distortion == Distortion((0.0, 0.01, 0.0, 0.0, 0.0, 0.0))
    np.testing.assert_array_equal(scene["p2.jpg"].lens.fxfycxcy, [40, 41, 23.5, 16])
    assert scene["p2.jpg"].load().pixels.shape == (HEIGHT, WIDTH, 3)
    write_colmap(images, [f"1 {pinhole}", f"2 {pinhole}", f"3 {fisheye}"])
    with pytest.raises(SceneError, match="camera 3: its model is OPENCV_FISHEYE"):
        read_scene(images)


@needs_pycolmap
def test_colmap_places(images, tmp_path):
    write_colmap(images / "sparse" / "0")
    write_colmap(images / "sparse" / "1")
    with pytest.raises(SceneError, match=r"several COLMAP models: name one of .*sparse/0"):
        read_scene(images)
    alone = write_colmap(images / "a" / "b" / "c" / "d")
    with pytest.raises(SceneError, match="no folder 'images'"):
        read_scene(alone)
    check(read_scene(alone, images=images / "images"), 1e-9, prefix="images/")
    write_colmap(alone, names=["../outside.png", *NAMES[1:]])
    with pytest.raises(SceneError, match="lies outside of"):
        read_scene(alone, images=images / "images")


def test_colmap_without_pycolmap(images, monkeypatch):
    write_colmap(images)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SceneError, match=r"pip install 'lvsm_jax\[colmap\]'"):
        read_scene(images)


@pytest.mark.parametrize(
    "form", ["cameras", "transforms", pytest.param("colmap", marks=needs_pycolmap)]
)
def test_what_is_in_only_one_of_poses_and_images_is_noted(images, form):
    (images / NAMES[0]).rename(images / "images" / "stray.png")
    if form == "colmap":
        write_colmap(images)
    else:
        content = cameras_json() if form == "cameras" else transforms_json()
        write_json(images / f"{form}.json", content)
    scene = read_scene(images)
    assert len(scene.photographs) == 2
    missing, unposed = scene.notes
    assert missing.startswith("1 poses have no image") and "p1.png" in missing
    assert unposed.startswith("1 images") and "stray.png" in unposed
    for file in (images / "images").iterdir():
        file.unlink()
    with pytest.raises(SceneError, match="none of its images"):
        read_scene(images)


def test_blender_transforms(images):
    """One angle for all, no size, no suffix of files."""
    (images / "images" / "p2.jpg").unlink()
    content = {"camera_angle_x": 2 * np.arctan(0.5), "frames": []}
    for frame in transforms_json()["frames"]:
        if "p2" not in frame["file_path"]:
            name = frame["file_path"].removesuffix(".png")
            pose = frame["transform_matrix"]
            content["frames"].append({"file_path": name, "transform_matrix": pose})
    scene = read_scene(write_json(images / "transforms_train.json", content))
    assert [photograph.name for photograph in scene.photographs] == ["images/p1", "images/p10"]
    for photograph in scene.photographs:
        expected = [WIDTH, WIDTH, WIDTH / 2, HEIGHT / 2]
        np.testing.assert_allclose(photograph.camera.fxfycxcy, expected)
    assert len(read_scene(images).photographs) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k7": 0.1, "s2": -0.2}, r"the lens distorts by k7 = 0.1, s2 = -0.2, and only k1, k2"),
        ({"b1": 3}, "the lens distorts by b1 = 3"),
        ({"k1": -50.0}, "no pinhole camera shows its picture"),
        ({"k1": "no"}, "'k1' is \"no\""),
        ({"distortion_params": [0, 0.1]}, "'distortion_params' has 2 numbers, not 6: k1, k2, k3"),
        ({"camera_model": "OPENCV_FISHEYE"}, "'camera_model' is 'OPENCV_FISHEYE'"),
        ({"camera_model": "EQUIRECTANGULAR"}, "'camera_model' is 'EQUIRECTANGULAR'"),
        ({"latlong": True}, "equirectangular"),
        ({"is_fisheye": True}, "a fisheye"),
        ({"w": 49}, r"'w' and 'h' are 49×32, but .*p10.png has 48×32"),
        ({"fl_y": 0}, "focal lengths"),
        ({"cx": [1]}, "'cx' is"),
        ({"fl_y": 0.85}, "expected pixels, not shares"),
        ({"fl_y": 0.01}, "focal lengths"),
        ({"w": 80, "h": 50}, "expected that size, or ½"),
    ],
)
def test_bad_transforms(images, changes, message):
    file = write_json(images / "transforms.json", transforms_json(**changes))
    with pytest.raises(SceneError, match=message) as error:
        read_scene(images)
    assert f"{file}: frames[0]" in str(error.value)


def test_transforms_without_a_focal_length(images):
    content = transforms_json()
    del content["frames"][1]["fl_x"]
    write_json(images / "transforms.json", content)
    with pytest.raises(SceneError, match=r"frames\[1\]: neither 'fl_x' nor 'camera_angle_x'"):
        read_scene(images)
    del content["frames"][1]["file_path"]
    write_json(images / "transforms.json", {**content, "file_path": "images/p1.png"})
    with pytest.raises(SceneError, match=r"frames\[1\]: 'file_path' is missing"):
        read_scene(images)
    content["frames"][1]["file_path"] = NAMES[1]
    content["camera_angle_x"] = 3.2
    write_json(images / "transforms.json", content)
    with pytest.raises(SceneError, match="expected radians"):
        read_scene(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../outside.png"}, "'../outside.png', which lies outside of"),
        ({"file": "/etc/passwd"}, "lies outside of"),
        ({"file": "images/link.png"}, "lies outside of .*: it is a link to .*outside.png"),
        ({"file": None}, "expected the name of an image file"),
        ({"file": "a\0b"}, "expected the name of an image file"),
        ({"file": "a" * 5000}, "'file' is 'aaa"),
        ({"file": "images/p1.png"}, "several poses of images/p1.png"),
        ({"file": "images/text.jpg"}, "text.jpg: not a picture"),
        ({"h": 48, "w": 32}, "'w' and 'h' are 32×48, but .*p2.jpg has 48×32"),
        ({"w2c": (-np.eye(4)).tolist()}, "w2c"),
        ({"fxfycxcy": [40, 40, None, 16]}, "'fxfycxcy' is"),
    ],
)
def test_bad_cameras_json(images, tmp_path_factory, changes, message):
    outside = tmp_path_factory.mktemp("outside") / "outside.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(outside)
    (images / "images" / "link.png").symlink_to(outside)
    (images / "images" / "text.jpg").write_text("not a picture")
    write_json(images / "cameras.json", cameras_json(**changes))
    with pytest.raises(SceneError, match=message):
        read_scene(images)


def test_images_elsewhere(images, tmp_path_factory):
    file = write_json(tmp_path_factory.mktemp("cameras") / "cameras.json", cameras_json())
    with pytest.raises(SceneError, match="none of its images is in"):
        read_scene(file)
    check(read_scene(file, images=images))
    with pytest.raises(SceneError, match="no folder of images"):
        read_scene(file, images=images / "nowhere")


_WORDS = ["frames", "file", "w", "h", "fxfycxcy", "w2c", "c2w", "transform_matrix", "file_path"]
_WORDS += ["fl_x", "camera_angle_x", "k1", "images/p1.png"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_WORDS) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=6)
        | st.just(np.eye(4).tolist())
    ),
    max_leaves=30,
)


@hypothesis.given(
    frames=st.lists(st.dictionaries(st.sampled_from(_WORDS), _JSON), min_size=1, max_size=3)
)
@hypothesis.settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_json_is_read_or_refused(images, frames):
    file = write_json(images / "cameras.json", {"frames": frames})
    try:
        scene = read_scene(file)
    except SceneError as error:
        assert str(images) in str(error)
    else:
        assert all(isinstance(photo.camera, PosedCamera) for photo in scene.photographs)


def test_no_such_scene(tmp_path):
    with pytest.raises(SceneError, match=r"no scene in .*expected cameras.json"):
        read_scene(tmp_path)
    write_json(tmp_path / "cameras.json", {"frames": []})
    with pytest.raises(SceneError, match="'frames' must be a list"):
        read_scene(tmp_path)


def test_no_such_photograph(images):
    write_json(images / "cameras.json", cameras_json())
    with pytest.raises(SceneError, match=r"no photograph 'p1.png'; it has images/p1.png"):
        read_scene(images)["p1.png"]


def test_real_scenes(shared_data):
    expected = {"hololens_office": 187, "nerf_lego/train": 100, "nerf_lego/test": 25} | {
        f"strecha/{name}": int(name.partition("-P")[2])
        for name in ("fountain-P11", "entry-P10", "Herz-Jesus-P25", "castle-P30")
    }
    for name, count in expected.items():
        if not (shared_data / name).is_dir():
            pytest.skip(f"no real data: {shared_data / name} does not exist")
        scene = read_scene(shared_data / name)
        assert (len(scene.photographs), scene.notes) == (count, []), name
        photograph = scene.photographs[count // 2]
        assert photograph.load().camera is photograph.camera
    with pytest.raises(SceneError, match="holds the scenes Herz-Jesus-P25"):
        read_scene(shared_data / "strecha")


def test_windows_names(images):
    content = cameras_json()
    for frame in content["frames"]:
        frame["file"] = frame["file"].replace("/", "\\")
    write_json(images / "cameras.json", content)
    assert [p.source.name for p in read_scene(images).photographs] == [
        "p1.png",
        "p2.jpg",
        "p10.png",
    ]


@needs_pycolmap
def test_colmap_text_with_spaces_in_names(images):
    names = []
    for i, name in enumerate(NAMES):
        names.append(f"images/a photograph ({i}).png")
        Image.open(images / name).save(images / names[-1])
        (images / name).unlink()
    write_colmap(images, names=names)
    assert [f"images/{p.name}" for p in read_scene(images).photographs] == names


def test_the_cameras_size_tells_whether_exif_has_turned_the_picture(images):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (WIDTH, HEIGHT), "red")
    stored.paste("blue", (0, 0, WIDTH // 2, HEIGHT))  # on the left, and above when it is turned
    stored.save(images / "images" / "p2.jpg", exif=exif, quality=95)
    write_json(images / "cameras.json", cameras_json(h=WIDTH, w=HEIGHT))
    pixels = read_scene(images)[NAMES[1]].load().pixels
    assert pixels.shape == (WIDTH, HEIGHT, 3)
    assert pixels[3, 3, 2] > 200 and pixels[3, -4, 2] > 200 and pixels[-4, 3, 0] > 200
    write_json(images / "cameras.json", cameras_json())
    pixels = read_scene(images)[NAMES[1]].load().pixels
    assert pixels[3, 3, 2] > 200 and pixels[-4, 3, 2] > 200 and pixels[3, -4, 0] > 200
    # A turn by a half, or none at all by a camera without a size, cannot be told.
    exif[0x0112] = 3
    stored.save(images / "images" / "p2.jpg", exif=exif)
    with pytest.raises(ValueError, match="EXIF orientation 3 would turn"):
        read_scene(images)[NAMES[1]].load()
    content = transforms_json()
    del content["w"], content["h"]
    write_json(images / "transforms.json", content)
    with pytest.raises(SceneError, match=r"EXIF orientation 3 .* no camera states its size"):
        read_scene(images / "transforms.json")


def test_natural_order():
    names = ["r_10", "r_2", "r_1", "a", "r_02b"]
    assert sorted(names, key=natural_order) == ["a", "r_1", "r_2", "r_02b", "r_10"]
