"""The program `render`: frames and a video of a path, resumed, and never mixed up."""

import csv
import dataclasses
import functools
import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lvsm_jax
from input_pipeline.clip_scene import open_scene
from lvsm_jax.gaussians.ply import read_ply
from lvsm_jax.gaussians.rasterize import rasterize
from lvsm_jax.programs import render as program
from lvsm_jax.programs.scene_options import choose_inputs, split_photographs
from lvsm_jax.rendering.frames import write_video
from lvsm_jax.rendering.session import Session
from lvsm_jax.scenes import camera_json, trajectories
from lvsm_jax.weights import exports
from lvsm_jax.weights.shipped import SHIPPED, weights_line

needs_ffmpeg = pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed"
)


def make_export(folder, seed=0, cls=lvsm_jax.EfficientLVSM, **about):
    config = {
        lvsm_jax.EfficientLVSM: lvsm_jax.EfficientLVSMConfig,
        lvsm_jax.LVSMDecoderOnly: lvsm_jax.LVSMDecoderOnlyConfig,
        lvsm_jax.GSLRM: functools.partial(
            lvsm_jax.GSLRMConfig, far=20.0, tile_size=8, pairs_per_gaussian=0.5
        ),
    }[cls](num_layers=1, width=32, head_dim=16)
    model = cls(config, rngs=nnx.Rngs(seed))
    exports.save(model, folder, about={"config": {"data": {"image_height": 16, **about}}})
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("export") / "export")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Six photographs of noise, 36 × 24, by cameras in a row that turn away from each other."""
    folder = tmp_path_factory.mktemp("scene")
    rng, frames = np.random.default_rng(0), []
    for i in range(6):
        angle = 0.1 * i
        c2w = np.eye(4)
        c2w[:3, :3] = [
            [np.cos(angle), 0, np.sin(angle)],
            [0, 1, 0],
            [-np.sin(angle), 0, np.cos(angle)],
        ]
        c2w[:3, 3] = [i, 0, 0]
        pixels = rng.integers(0, 255, (24, 36, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        frame = {"file": f"{i}.png", "w": 36, "h": 24, "fxfycxcy": [30, 30, 18, 12]}
        frames.append({**frame, "c2w": c2w.tolist()})
    (folder / "cameras.json").write_text(json.dumps({"frames": frames}))
    return folder


def render(export, scene, out, *options):
    """Runs the program in this process."""
    program.main([str(export), str(scene), str(out), "--frames=10", *options])


def frames_in(folder):
    files = sorted(folder.glob("frame_*.png"))
    assert [file.name for file in files] == [f"frame_{i:05d}.png" for i in range(len(files))]
    return [np.asarray(Image.open(file)) for file in files]


def test_frames_are_what_a_session_renders(export, scene, tmp_path, capsys):
    render(export, scene, tmp_path / "out", "--no-video", "--inputs=3", "--size=24x16")
    told = capsys.readouterr()
    assert "3 of 6 photographs" in told.out and "0.png, 2.png, 5.png" in told.out
    assert "wrote 10 frames" in told.out and "10/10" in told.err
    photographs = open_scene(scene).photographs
    chosen = [photographs[i] for i in (0, 2, 5)]
    cameras = trajectories.interpolate([photograph.camera for photograph in chosen], 10)
    written = camera_json.read_camera_path(tmp_path / "out" / "path.json")
    np.testing.assert_array_equal([c.c2w for c in written], [c.c2w for c in cameras])
    model = lvsm_jax.load(export)
    with Session(model, image_height=16, image_width=24, max_views=3) as session:
        session.add([photograph.load() for photograph in chosen])
        expected = list(session.render_path(cameras))
    np.testing.assert_array_equal(frames_in(tmp_path / "out"), expected)
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_weights_by_name_in_front_or_shipped(export, scene, tmp_path, capsys):
    """One path of frames, whichever way the export is named; without one the shipped weights."""
    by_name = [f"--weights={export}", str(scene), "--frames=4", str(tmp_path / "name")]
    program.main([*by_name, "--no-video"])
    assert f"weights: {export} (EfficientLVSM" in capsys.readouterr().out
    program.main([str(export), "--frames=4", str(scene), str(tmp_path / "front"), "--no-video"])
    assert f"lvsm view {scene} --weights={export}" in capsys.readouterr().out
    program.main([str(scene), str(tmp_path / "shipped"), "--frames=4", "--no-video"])
    told = capsys.readouterr().out
    line = weights_line(SHIPPED, exports.describe(SHIPPED))
    assert f"{line}\n" in told and told.endswith(f"lvsm view {scene}\n")
    name, front, shipped = (frames_in(tmp_path / out) for out in ("name", "front", "shipped"))
    np.testing.assert_array_equal(name, front)
    size = exports.describe(SHIPPED)["config"]["data"]["image_height"]
    assert np.shape(shipped) == (4, size, size, 3)
    with pytest.raises(SystemExit, match=r"error: two exports, .* and --weights=.*: give one"):
        program.main([str(export), str(scene), "out", f"--weights={export}"])
    with pytest.raises(SystemExit, match=f"error: {export} is an export, no scene: give a scene"):
        program.main([str(export), str(scene)])


def test_goes_on_where_it_stopped(export, scene, tmp_path, capsys):
    out = tmp_path / "out"
    render(export, scene, out, "--no-video")
    whole = frames_in(out)
    (out / "frame_00003.png").unlink()
    (out / "frame_00009.png").unlink()
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("frame_*.png")}
    render(export, scene, out, "--no-video", "--fps=5")  # speed is none of the frames' business
    np.testing.assert_array_equal(frames_in(out), whole)
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("frame_*.png")}
    assert after.items() > kept.items()
    capsys.readouterr()


def test_frames_of_another_command_are_not_mixed(export, scene, tmp_path):
    out = tmp_path / "out"
    render(export, scene, out, "--no-video")
    first = frames_in(out)
    with pytest.raises(SystemExit, match=r"error: .*another command \(other cameras, path\)"):
        render(export, scene, out, "--no-video", "--path=dolly")
    with pytest.raises(SystemExit, match=r"other cameras, inputs"):
        render(export, scene, out, "--no-video", "--inputs=2")
    other = make_export(tmp_path / "export", seed=1)
    with pytest.raises(SystemExit, match=r"other export"):
        render(other, scene, out, "--no-video")
    np.testing.assert_array_equal(frames_in(out), first)
    render(other, scene, out, "--no-video", "--overwrite")
    assert (np.array(frames_in(out)) != np.array(first)).any()


def test_a_folder_of_other_things_is_left_alone(export, scene, tmp_path):
    (tmp_path / "thesis.tex").write_text("\\end")
    with pytest.raises(SystemExit, match="holds something else"):
        render(export, scene, tmp_path, "--no-video", "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_camera_path_file(export, scene, tmp_path):
    """The cameras of the photographs themselves, as a file that is one already."""
    out = tmp_path / "out"
    path = f"--path={scene / 'cameras.json'}"
    program.main([str(export), str(scene), str(out), path, "--no-video"])
    assert len(frames_in(out)) == 6


@needs_ffmpeg
@pytest.mark.filterwarnings("ignore:os.fork")  # of reading
@pytest.mark.parametrize("size", ["16", "24x8"])
def test_video(export, scene, tmp_path, size):
    import imageio_ffmpeg

    out = tmp_path / "100% odd name"
    render(export, scene, out, f"--size={size}", "--fps=12.5", "--video-scale=1")
    video = out / "video.mp4"
    assert imageio_ffmpeg.count_frames_and_secs(str(video)) == (10, pytest.approx(0.8))
    reader = imageio_ffmpeg.read_frames(str(video))
    about = next(reader)
    assert about["fps"] == 12.5 and about["codec"] == "h264" and "yuv420p" in about["pix_fmt"]
    expected = frames_in(out)
    assert about["size"] == expected[0].shape[1::-1]
    for pixels, decoded in zip(expected, reader, strict=True):
        seen = np.frombuffer(decoded, np.uint8).reshape(pixels.shape)
        # Colours are stored at half the size, so only means compare.
        np.testing.assert_allclose(seen.mean((0, 1)), pixels.mean((0, 1)), atol=6)


@pytest.mark.filterwarnings("ignore:os.fork")
@needs_ffmpeg
def test_video_that_people_can_watch(export, scene, tmp_path):
    """Enlarged until the shorter side has 512 pixels, with the inputs to its left."""
    import imageio_ffmpeg

    out = tmp_path / "out"
    render(export, scene, out, "--show-inputs", "--inputs=5", "--frames=3")
    reader = imageio_ffmpeg.read_frames(str(out / "video.mp4"))
    width, height = next(reader)["size"]
    assert (width, height) == (2 * 170 + 512, 512)  # two columns of three
    shown = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    assert len(shown) == 3
    with Session(lvsm_jax.load(export), image_height=16) as session:
        session.add([open_scene(scene)[f"{i}.png"].load() for i in (0, 1, 2, 4, 5)])
        first = next(iter(session.views.values())).picture
    for frame, expected in zip(shown, frames_in(out), strict=True):
        small = np.asarray(Image.fromarray(frame[:, 340:]).resize((16, 16)))
        assert np.abs(small.mean((0, 1)) - expected.mean((0, 1))).max() < 8
        corner = np.asarray(Image.fromarray(frame[:170, :170]).resize((16, 16))).astype(int)
        assert np.abs(corner - first).mean() < 40 < np.abs(corner - expected).mean() + 25


@pytest.mark.slow
def test_photographs_are_held_out(export, scene, tmp_path, capsys):
    out = tmp_path / "out"
    render(export, scene, out, "--no-video", "--hold-out=2", "--inputs=3", "--frames=2")
    told = capsys.readouterr()
    assert "2 held out" in told.out and "copy nearest input" in told.out
    record = json.loads((out / "render.json").read_text())
    assert record["held_out"] == ["2.png", "3.png"]
    assert list(record["inputs"]) == ["0.png", "4.png", "5.png"]
    rows = list(csv.DictReader((out / "held_out.csv").open()))
    photographs = open_scene(scene)
    with Session(lvsm_jax.load(export), image_height=16, max_views=3) as session:
        session.add([photographs[name].load() for name in record["inputs"]])
        for row, name, nearest in zip(rows, record["held_out"], ("4.png", "4.png"), strict=True):
            target = photographs[name].load().cropped_to(16, 16) / np.float32(255)
            render_of = session.render(photographs[name].camera) / np.float32(255)
            copy = photographs[nearest].load().cropped_to(16, 16) / np.float32(255)
            assert row["photograph"] == name
            for column, shown in (("psnr", render_of), ("copy_nearest_psnr", copy)):
                expected = -10 * np.log10(np.square(target - shown).mean())
                assert float(row[column]) == pytest.approx(expected, abs=1e-3)
    render(export, scene, out, "--no-video", "--hold-out=1", "--frames=2", "--overwrite")
    assert len(list(out.glob("held_out_*.png"))) == 1
    render(export, scene, out, "--no-video", "--hold-out=2", "--frames=2", "--overwrite")
    pictures = sorted(out.glob("held_out_*.png"))
    assert [Image.open(picture).size for picture in pictures] == [(3 * 16 + 2 * 4, 16)] * 2


@pytest.mark.parametrize(
    ("inputs", "count", "chosen", "held_out"),
    [
        (None, 0, [0, 2, 3, 5], []),
        (None, 1, [0, 1, 4, 5], [2]),
        ("all", 2, [0, 1, 4, 5], [2, 3]),
        ("1", 5, [0], [1, 2, 3, 4, 5]),
        ("5.png,0.png", 4, [5, 0], [1, 2, 3, 4]),
        ("5.png,0.png", 1, [5, 0], [3]),
    ],
)
def test_what_is_held_out_is_no_input(scene, inputs, count, chosen, held_out):
    ours = split_photographs(open_scene(scene), inputs, count)
    names = [[int(photograph.name.removesuffix(".png")) for photograph in some] for some in ours]
    assert names == [chosen, held_out]


@pytest.mark.parametrize(("inputs", "count", "most"), [(None, 6, 5), ("0.png,1.png", 5, 4)])
def test_more_than_can_be_held_out(scene, inputs, count, most):
    with pytest.raises(ValueError, match=f"--hold-out={count}, expected 1 to {most}"):
        split_photographs(open_scene(scene), inputs, count)
    every = ",".join(photograph.name for photograph in open_scene(scene).photographs)
    with pytest.raises(ValueError, match="6 photographs, and all of them are inputs"):
        split_photographs(open_scene(scene), every, count)


def test_video_of_odd_size(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    for i in range(3):
        Image.new("RGB", (21, 15), (250, 120, 10)).save(tmp_path / f"frame_{i:05d}.png")
    video = write_video(tmp_path, 3, 30.0)
    reader = imageio_ffmpeg.read_frames(str(video))
    assert next(reader)["size"] == (22, 16)
    frame = np.frombuffer(next(reader), np.uint8).reshape(16, 22, 3)
    np.testing.assert_allclose(frame[4:12, 4:16].reshape(-1, 3).mean(0), [250, 120, 10], atol=4)
    reader.close()


def test_video_without_ffmpeg(export, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'lvsm_jax\[video\]', or give --no-video"):
        render(export, scene, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--path=spin"], "--path=spin: no such file, nor one of interpolate, orbit"),
        (["--path=orbit", "--closed"], "--closed does not go with --path=orbit"),
        (["--path=dolly", "--distance=2"], "--distance does not go with --path=dolly"),
        (["--path=orbit"], "do not meet in front of them: give the distance"),
        (["--inputs=7"], "--inputs=7, but .* has 6 photographs"),
        (["--inputs=0"], "--inputs=0"),
        (["--inputs=1"], "made from 2 cameras or more, got 1"),
        (["--inputs=0.png,9.png"], "no photograph '9.png'"),
        (["--inputs=0.png,0.png"], "names a photograph twice"),
        (["--frames=0"], "frames is 0"),
        (["--fps=0"], "--fps=0.0, expected a positive number"),
        (["--size=big"], "--size=big, expected HEIGHT or WIDTHxHEIGHT"),
        (["--size=20"], "multiples of the patch size 8"),
        (["--scale=-1"], "scale is -1"),
    ],
)
def test_errors_take_one_line_and_leave_nothing(export, scene, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        render(export, scene, out, "--no-video", *options)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_frames_do_not_go_with_a_file(export, scene, tmp_path):
    with pytest.raises(SystemExit, match="--frames does not go with --path="):
        render(export, scene, tmp_path / "out", "--no-video", f"--path={scene / 'cameras.json'}")


def test_models_without_a_cache_and_no_models(scene, tmp_path):
    other = make_export(tmp_path / "export", cls=lvsm_jax.LVSMDecoderOnly)
    with pytest.raises(SystemExit, match=r"^error: .*EfficientLVSM"):
        render(other, scene, tmp_path / "out", "--no-video")
    with pytest.raises(SystemExit, match="is no export"):
        render(tmp_path, scene, tmp_path / "out", "--no-video")
    wide = make_export(tmp_path / "wide", square_crop=False)
    with pytest.raises(SystemExit, match="give --size"):
        render(wide, scene, tmp_path / "out", "--no-video")
    assert not (tmp_path / "out").exists()


def test_notes_are_told(export, scene, tmp_path, capsys):
    content = json.loads((scene / "cameras.json").read_text())
    content["frames"][2]["file"] = "gone.png"
    file = tmp_path / "cameras.json"
    file.write_text(json.dumps(content))
    render(export, file, tmp_path / "out", f"--images={scene}", "--no-video")
    told = capsys.readouterr().err
    assert "note: 1 poses have no image" in told and "note: 1 images" in told


def test_inputs(scene):
    there = open_scene(scene)

    def names(wanted):
        return [photograph.name for photograph in choose_inputs(there, wanted)]

    assert names("4") == ["0.png", "2.png", "3.png", "5.png"]
    assert names(None) == names("4")
    assert names("1") == ["3.png"]
    assert names("all") == [f"{i}.png" for i in range(6)]
    assert names("4.png,1.png") == ["4.png", "1.png"]
    few = dataclasses.replace(there, photographs=there.photographs[:3])
    assert choose_inputs(few, None) == few.photographs


def test_program_says_how_to_use_it():
    root = pathlib.Path(lvsm_jax.__file__).parent.parent
    command = [sys.executable, "-m", "lvsm_jax", "render", "--help"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert "lvsm render EXPORT SCENE OUT" in told


def test_real_scenes(export, shared_data, tmp_path):
    for name in ("hololens_office", "strecha/fountain-P11"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"no real data: {shared_data / name} does not exist")
        render(export, shared_data / name, tmp_path / name, "--no-video")
        assert len(frames_in(tmp_path / name)) == 10
    clips = shared_data / "re10k_sample"
    if not clips.is_dir():
        pytest.skip(f"no real data: {clips} does not exist")
    from input_pipeline.re10k import __main__ as import_re10k

    import_re10k.run(clips, tmp_path / "re10k", splits=["test"], verify=False)
    clip = f"{tmp_path / 're10k'}/test:663b29720a9005b0"
    render(export, clip, tmp_path / "clip", "--no-video", "--path=spiral")
    assert len(frames_in(tmp_path / "clip")) == 10


@pytest.mark.slow
def test_gaussians_are_rendered_and_taken_away(scene, tmp_path, capsys):
    """What the file holds, in the world of the photographs, renders as the frames."""
    export = make_export(tmp_path / "export", cls=lvsm_jax.GSLRM)
    out, ply = tmp_path / "out", tmp_path / "scene.ply"
    options = ["--no-video", "--inputs=2", "--frames=3", f"--ply={ply}"]
    program.main([str(scene), str(out), f"--weights={export}", *options])
    assert f"wrote 512 of 512 Gaussians to {ply}" in capsys.readouterr().out
    gaussians = jax.tree.map(jnp.asarray, read_ply(ply))

    @jax.jit
    def show(c2w, fxfycxcy):
        size = {"height": 16, "width": 16, "capacity": 9000, "tile": 16}
        raster = rasterize(gaussians, c2w, fxfycxcy, **size)
        return jnp.clip(raster.features + 1 - raster.alpha, 0, 1) * 255

    frames = frames_in(out)
    for frame, camera in zip(frames, camera_json.read_camera_path(out / "path.json"), strict=True):
        posed = camera.c2w, camera.cropped_to(16, 16).fxfycxcy
        shown = show(*(jnp.asarray(x, jnp.float32) for x in posed))
        np.testing.assert_allclose(frame, shown, atol=1.5)
    assert np.std(frames) > 5

    # The same command goes on; another one overwrites nothing unasked.
    (out / "frame_00001.png").unlink()
    program.main([str(scene), str(out), f"--weights={export}", *options])
    np.testing.assert_array_equal(frames_in(out), frames)
    other = [str(scene), str(tmp_path / "other"), f"--weights={export}", *options]
    with pytest.raises(SystemExit, match=f"error: {ply} exists"):
        program.main(other)
    some = [*other, "--overwrite", "--ply-min-opacity=0.12"]
    program.main(some)
    written = len(read_ply(ply).means)
    assert written == (np.asarray(gaussians.opacities) >= 0.12).sum() < 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ply=x.ply"], "--ply: EfficientLVSM makes no Gaussians, only GSLRM does"),
        (["--ply-min-opacity=0.5"], "--ply-min-opacity needs --ply=FILE"),
        (["--ply=x.ply", "--ply-min-opacity=2"], "--ply-min-opacity=2.0, expected 0 to 1"),
    ],
)
def test_files_of_gaussians_that_cannot_be(export, scene, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        render(export, scene, tmp_path / "out", "--no-video", *options)
    assert not (tmp_path / "out").exists()
