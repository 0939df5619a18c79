"""Renders of objects become a dataset: bytes kept, in every layout, and nothing is guessed."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from input_pipeline.alpha import DatasetAlpha, alpha_of, read_alpha, write_alpha
from input_pipeline.camera_table import read_camera_table
from input_pipeline.clip_scene import open_scene
from input_pipeline.objects import __main__ as import_objects
from input_pipeline.own_scenes import __main__ as import_scenes
from input_pipeline.preprocess import crop_mask, preprocess_frame
from input_pipeline.storage import SplitReader
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.scenes.readers import read_scene
from tests.helpers.objects import FOV, GL, ball, gso_poses, orbit_pose, png, write_object

LAYOUTS = ("opencv_cameras", "blender", "zero123", "ssd_lvsm", "lgm", "gobjaverse")
NEEDS_FOV = ("zero123", "ssd_lvsm", "lgm")
POSES = [orbit_pose(e, a) for e, a in ((20, 45), (20, 135), (40, 200), (0, 300))]
WHITE = (255, 255, 255)


def reasons(findings, refused):
    return {f.chunk: f.reason for f in findings if f.refused == refused}


def frames_of(out, split, key):
    reader = SplitReader(out, split)
    row = reader.scenes.key.tolist().index(key)
    first, count = int(reader.scenes.first_frame[row]), int(reader.scenes.num_frames[row])
    return reader.frames(range(first, first + count))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_cameras_and_its_own_bytes(tmp_path, layout):
    write_object(tmp_path / "in" / "ball", layout, POSES)
    fov = FOV if layout in NEEDS_FOV else None
    named = layout if layout == "ssd_lvsm" else None
    findings = import_objects.run(
        tmp_path / "in", tmp_path / "out", fov=fov, layout=named, test_share=0.0
    )
    assert not reasons(findings, True)
    told = {} if named else {"ball": f"read as {layout}"}
    assert reasons(findings, False) == told
    frames = frames_of(tmp_path / "out", "train", "ball")
    for frame, pose in zip(frames, POSES, strict=True):
        np.testing.assert_allclose(frame.w2c, np.linalg.inv(pose)[:3], atol=1e-6)
        focal = 0.5 / np.tan(np.deg2rad(FOV) / 2)
        np.testing.assert_allclose(frame.normalized_fxfycxcy, [focal, focal, 0.5, 0.5], rtol=1e-6)
        assert frame.image == png(ball(pose))
    table = read_camera_table(tmp_path / "out", "train", 4)
    np.testing.assert_array_equal(table.w2c, [frame.w2c for frame in frames])
    assert read_alpha(tmp_path / "out") == DatasetAlpha(Alpha(WHITE), True)
    scene = open_scene(f"{tmp_path}/out/train:ball")  # white, as the dataset says
    assert scene.photographs[0].load().pixels[0, 0].tolist() == [255] * 3


def test_the_same_views_in_eight_formats(shared_data, tmp_path):
    root = shared_data / "layouts" / "equivalent"
    for name in ("opencv_cameras", "nerf_synthetic", "nerfstudio", "polycam", "record3d"):
        shutil.copytree(root / name, tmp_path / "in" / name)
    shutil.copytree(root / "gobjaverse" / "0" / "10002", tmp_path / "in" / "gobjaverse")
    for name in ("zero123", "lgm"):
        shutil.copytree(root / name / "0a1b2c", tmp_path / "fov" / name)
    expected = read_scene(root / "expected").photographs
    turn = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    for source, fov in (("in", None), ("fov", FOV)):
        findings = import_objects.run(
            tmp_path / source, tmp_path / f"out_{source}", fov=fov, test_share=0.0
        )
        assert not reasons(findings, True)
        assert not any("do not look" in finding.reason for finding in findings)
        out = tmp_path / f"out_{source}"
        for key in SplitReader(out, "train").scenes.key.tolist():
            world = turn if key in ("nerfstudio", "polycam", "record3d") else np.eye(4)
            photographs = open_scene(f"{out}/train:{key}").photographs
            for one, other in zip(photographs, expected, strict=True):
                np.testing.assert_allclose(one.camera.c2w, world @ other.camera.c2w, atol=3e-6)
                intrinsics = one.camera.fxfycxcy, other.camera.fxfycxcy
                np.testing.assert_allclose(*intrinsics, rtol=1e-5)
                off = np.abs(one.load().pixels.astype(int) - other.load().pixels)
                jpeg = key in ("polycam", "record3d")
                assert off.mean() < 1.5 if jpeg else off.max() <= 1
    folder = root / "zero123" / "0a1b2c"
    first = frames_of(tmp_path / "out_fov", "train", "zero123")[0]
    assert first.image == (folder / "000.png").read_bytes()


def test_what_is_not_in_the_files_is_asked_for(tmp_path):
    for layout in ("zero123", "lgm", "opencv_cameras"):
        write_object(tmp_path / "in" / layout, layout, POSES)
    write_object(tmp_path / "in" / "axes", "ssd_lvsm", POSES)
    (tmp_path / "in" / "nothing").mkdir()
    both = tmp_path / "in" / "both"
    shutil.copytree(tmp_path / "in" / "lgm", both)
    shutil.copy(tmp_path / "in" / "opencv_cameras" / "opencv_cameras.json", both)
    refused = reasons(import_objects.run(tmp_path / "in", tmp_path / "out", test_share=0.0), True)
    assert set(refused) == {"zero123", "lgm", "axes", "nothing", "both"}
    assert "hold no field of view: --fov" in refused["zero123"]
    assert "hold no field of view: --fov" in refused["lgm"]
    assert "--layout=opencv_cameras or lgm" in refused["both"]
    findings = import_objects.run(tmp_path / "in", tmp_path / "b", fov=FOV, test_share=0.0)
    refused = reasons(findings, True)
    assert set(refused) == {"opencv_cameras", "axes", "nothing", "both"}
    assert "its files hold one" in refused["opencv_cameras"]
    assert "name the --layout, ssd_lvsm or zero123" in refused["axes"]
    with pytest.raises(ValueError, match="--fov=400"):
        import_objects.run(tmp_path / "in", tmp_path / "c", fov=400.0)


def test_a_camera_that_looks_elsewhere_is_named(tmp_path):
    turned = [*POSES]
    angle = np.deg2rad(10)
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    turned[2] = POSES[2].copy()
    turned[2][:3, :3] = POSES[2][:3, :3] @ turn
    write_object(tmp_path / "in" / "one", "opencv_cameras", turned)
    write_object(tmp_path / "in" / "all", "opencv_cameras", [pose @ GL for pose in POSES])
    notes = import_objects.run(tmp_path / "in", tmp_path / "out", test_share=0.0)
    told = {f.chunk: f.reason for f in notes if "do not look" in f.reason}
    assert told["one"].startswith("1 cameras do not look at the object")
    assert "renderings/00000002_rgba.png (10°)" in told["one"]
    assert told["all"].startswith("4 cameras") and "turned round they would" in told["all"]


def test_colours_that_lie_on_white_are_said_to(tmp_path, capsys):
    poses, source = POSES, tmp_path / "in"
    on_white = [ball(pose, clear=WHITE) for pose in poses]
    write_object(source / "white", "opencv_cameras", poses, pictures=on_white)
    run = import_objects.run
    with pytest.raises(ValueError, match="no object to train on could be read"):
        run(source, tmp_path / "unsaid", test_share=0.0)
    assert "do its colours lie on white already?" in capsys.readouterr().out
    run(source, tmp_path / "straight", test_share=0.0, composited="none")
    run(source, tmp_path / "white", test_share=0.0, composited="white")
    assert read_alpha(tmp_path / "white").alpha.composited == WHITE
    assert json.loads((tmp_path / "white" / "alpha.json").read_text()) == {
        "background": "white",
        "composited": "white",
        "transparent": True,
    }
    write_object(source / "black", "opencv_cameras", poses)
    refused = reasons(run(source, tmp_path / "both", test_share=0.0, composited="white"), True)
    assert "clear pixels are not white" in refused["black"]
    write_object(tmp_path / "more" / "a", "opencv_cameras", poses)
    with pytest.raises(ValueError, match="other composited: choose another"):
        run(source, tmp_path / "white", test_share=0.0, objects="white", composited="none")
    for field in ("background", "composited"):
        with pytest.raises(ValueError, match=f"--{field}: 'tartan' is no colour"):
            run(source, tmp_path / "x", **{field: "tartan"})


def test_an_import_goes_on_and_comes_out_the_same(tmp_path, capsys):
    for name in ("a", "b", "c"):
        write_object(tmp_path / "in" / name, "blender", POSES)
    options = {"test_objects": ["b"]}
    import_objects.run(tmp_path / "in", tmp_path / "once", **options)
    out = tmp_path / "twice"
    import_objects.run(tmp_path / "in", out, **options)
    (out / "dataset_info.json").unlink()
    (out / ".import" / "objects-train.array_record-00001-of-00002.json").unlink()
    import_objects.run(tmp_path / "in", out, **options)

    def contents(folder):
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

    assert contents(out) == contents(tmp_path / "once")
    capsys.readouterr()
    import_objects.run(tmp_path / "in", out, **options)
    assert "complete already" in capsys.readouterr().out
    import_objects.run(tmp_path / "in", tmp_path / "test", test_share=1.0)
    assert SplitReader(tmp_path / "test", "test").scenes.key.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"no scenes\.json: not made by import-scenes"):
        import_scenes.run(tmp_path / "in", out)
    with pytest.raises(ValueError, match="--test-objects: there is no object d"):
        import_objects.run(tmp_path / "in", tmp_path / "d", test_objects=["d"])


def test_splits_of_blender_are_views_of_one_object(tmp_path):
    folder = tmp_path / "in" / "lego"
    write_object(folder, "blender", POSES)
    content = json.loads((folder / "transforms_train.json").read_text())
    first, *rest = content["frames"]
    (folder / "transforms_train.json").write_text(json.dumps(content | {"frames": rest}))
    (folder / "transforms_test.json").write_text(json.dumps(content | {"frames": [first]}))
    import_objects.run(tmp_path / "in", tmp_path / "out", test_share=0.0)
    frames = frames_of(tmp_path / "out", "train", "lego")
    assert [f.image for f in frames] == [png(ball(pose)) for pose in (*POSES[1:], POSES[0])]
    (folder / "transforms_val.json").write_text(json.dumps(content | {"frames": [first]}))
    with pytest.raises(ValueError, match="no object to train on"):
        import_objects.run(tmp_path / "in", tmp_path / "twice", test_share=0.0)
    refused = json.loads((tmp_path / "twice" / "refused.json").read_text())["refused"]
    assert "several of its files name train/r_0" in refused[0]["reason"]


def test_alpha_is_put_on_the_background_as_it_was_made():
    shares, straight = np.array([1, 1, 0.5, 0.5], np.float32), ball(POSES[0])
    on = {name: np.full(3, value) for name, value in (("black", 0), ("white", 255))}
    alpha = straight[..., 3:] / 255

    def read(pixels, background, composited=None):
        how = Alpha(tuple(map(int, on[background])), composited)
        return preprocess_frame(png(pixels), shares, 32, True, how)[0].astype(float)

    for name, colour in on.items():  # in the stored gamma
        expected = straight[..., :3] * alpha + colour * (1 - alpha)
        np.testing.assert_allclose(read(straight, name), expected, atol=0.51)
    # Colours that were put on white in linear light are taken as they are, and moved back exactly.
    linear = (straight[..., :3] / 255) ** 2.2
    white = np.rint(255 * (linear * alpha + (1 - alpha)) ** (1 / 2.2)).astype(np.uint8)
    renders = np.concatenate([white, straight[..., 3:]], -1)
    np.testing.assert_array_equal(read(renders, "white", WHITE), white)
    black = 255 * (linear * alpha) ** (1 / 2.2)
    bright = black > 40  # darker ones are lost in 8 bits beside white
    np.testing.assert_allclose(read(renders, "black", WHITE)[bright], black[bright], atol=6)
    mask = crop_mask(png(straight), import_crop(16))
    assert mask.shape == (16, 16) and 0.2 < mask.mean() < 0.6 and mask[8, 8] and not mask[0, 0]
    assert crop_mask(png(straight[..., :3]), import_crop(16)).all()


def import_crop(size):
    from input_pipeline.preprocess import Crop

    return Crop(size, size)


def test_a_dataset_says_what_its_pictures_are_on(tmp_path):
    assert alpha_of(tmp_path, "") is None and alpha_of(tmp_path, "black") == Alpha((0, 0, 0))
    write_alpha(tmp_path, DatasetAlpha(Alpha((1, 2, 3), WHITE), True))
    assert alpha_of(tmp_path, "") == Alpha((1, 2, 3), WHITE)
    assert alpha_of(tmp_path, "black") == Alpha((0, 0, 0), WHITE)
    for damage in ("{}", '{"background": 3, "transparent": true}', '{"background": "tartan"}', "["):
        (tmp_path / "alpha.json").write_text(damage)
        with pytest.raises(ValueError, match=r"alpha\.json"):
            read_alpha(tmp_path)


def test_real_renders_keep_their_bytes(shared_data, tmp_path):
    source = shared_data / "gso_sample"
    findings = import_objects.run(
        source, tmp_path / "out", objects="gso_*", composited="white", test_share=1.0
    )
    assert not reasons(findings, True)
    assert not any("do not look" in f.reason for f in findings)
    frame = frames_of(tmp_path / "out", "test", "gso_toy")[9]
    file = source / "gso_toy" / "renderings" / "00000018_rgba.png"
    assert frame.image == file.read_bytes()
    alpha = alpha_of(tmp_path / "out", "")
    pixels, _ = preprocess_frame(frame.image, frame.normalized_fxfycxcy, 512, True, alpha)
    with Image.open(io.BytesIO(frame.image)) as picture:  # on white the alpha is dropped
        np.testing.assert_array_equal(pixels, np.asarray(picture)[..., :3])


def test_views_of_the_whole_rig():
    poses = gso_poses()
    assert len(poses) == 64
    np.testing.assert_allclose(np.linalg.norm([p[:3, 3] for p in poses], axis=1), 2.7)
