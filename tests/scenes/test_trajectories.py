"""Camera paths: through the inputs, smooth, in any world, looking and moving the right way."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lvsm_jax.scenes import camera_json, trajectories
from lvsm_jax.scenes.photograph import PosedCamera

UP = np.array([0.0, 0.0, 1.0])  # of the test's world, unlike the cameras' own
TARGET = np.array([0.3, -0.2, 0.1])


def looking(position, target, fxfycxcy=(50, 50, 32, 24), up=UP):
    """A level camera 64 × 48 that has the target in its middle."""
    forward = np.asarray(target, float) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    c2w[:3, 3] = position
    return PosedCamera(c2w, fxfycxcy, 64, 48)


def around(degrees, radius=2.0, height=0.7, **options):
    """Cameras at these places of a circle around the target, seen from above anticlockwise."""
    angles = np.radians(degrees)
    places = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1) * radius
    return [looking(TARGET + place + height * UP, TARGET, **options) for place in places]


def poses(cameras):
    return np.stack([camera.c2w for camera in cameras])


def intrinsics(cameras):
    return np.stack([camera.fxfycxcy for camera in cameras])


def uneven():
    """Inputs at uneven distances that turn and zoom."""
    rng = np.random.default_rng(3)
    cameras = []
    for step in np.cumsum([0, 1, 0.3, 2, 0.1, 1.2]):
        place = np.array([step, np.sin(step), 0.3 * np.cos(2 * step)])
        aim = place + np.array([1.0, 0.8 * np.cos(step), rng.uniform(-0.2, 0.2)])
        focal = rng.uniform(40, 60)
        cameras.append(looking(place, aim, (focal, focal * 1.1, rng.uniform(30, 34), 24)))
    return cameras


def roughness(values):
    """Largest second difference of a sequence."""
    return np.abs(np.diff(values, n=2, axis=0)).max()


def test_evenly_spaced_inputs_are_frames_of_the_path():
    inputs = around([0, 20, 40, 60])
    path = trajectories.interpolate(inputs, 3 * 7 + 1)
    np.testing.assert_allclose(poses(path[::7]), poses(inputs), atol=1e-9)
    np.testing.assert_allclose(intrinsics(path[::7]), intrinsics(inputs), atol=1e-9)


@pytest.mark.parametrize("closed", [False, True])
def test_path_passes_through_uneven_inputs(closed):
    inputs = uneven()
    path = poses(trajectories.interpolate(inputs, 600, closed=closed))
    step = np.linalg.norm(np.diff(path[:, :3], axis=0), axis=(1, 2)).max()
    for camera in inputs:
        nearest = np.linalg.norm(path[:, :3] - camera.c2w[:3], axis=(1, 2)).min()
        assert nearest <= step
    np.testing.assert_allclose(path[0], inputs[0].c2w, atol=1e-9)
    if not closed:
        np.testing.assert_allclose(path[-1], inputs[-1].c2w, atol=1e-9)


@pytest.mark.parametrize("closed", [False, True])
def test_path_is_smooth_in_position_and_rotation(closed):
    """Twice the frames, a quarter of the second difference: with a kink it would be a half."""

    def second_differences(frames):
        path = trajectories.interpolate(uneven(), frames, closed=closed)
        if closed:
            path = path + path[:2]
        pose = poses(path)
        return roughness(pose[:, :3, 3]), roughness(pose[:, :3, :3])

    coarse, fine = second_differences(600), second_differences(1200)
    assert fine[0] < 0.3 * coarse[0]
    assert fine[1] < 0.3 * coarse[1]


def test_intrinsics_do_not_overshoot():
    inputs = uneven()
    values, given = intrinsics(trajectories.interpolate(inputs, 300)), intrinsics(inputs)
    assert (values >= given.min(0) - 1e-9).all() and (values <= given.max(0) + 1e-9).all()
    steps = np.abs(np.diff(values, axis=0)).max(0)
    assert (steps < 0.1 * np.ptp(given, axis=0) + 1e-9).all()


def test_closed_path_does_not_repeat_its_first_frame():
    inputs = around([0, 90, 180, 270])
    path = trajectories.interpolate(inputs, 8, closed=True)
    np.testing.assert_allclose(poses(path[::2]), poses(inputs), atol=1e-9)
    assert np.linalg.norm(path[-1].c2w - path[0].c2w) > 0.1


def test_inputs_in_one_place():
    turning = [looking([0, 0, 0], [1, y, 0]) for y in (-0.5, 0, 0.5)]
    path = poses(trajectories.interpolate(turning, 5))
    np.testing.assert_allclose(path[:, :3, 3], 0, atol=1e-12)
    np.testing.assert_allclose(path[2], turning[1].c2w, atol=1e-9)
    same = trajectories.interpolate([turning[0]] * 3, 4)
    np.testing.assert_allclose(poses(same), poses([turning[0]] * 4), atol=1e-9)


def test_pictures_take_the_size_of_the_first():
    first = looking([0, 0, 0], [1, 0, 0])
    larger = PosedCamera(looking([1, 0, 0], [2, 0, 0]).c2w, [100, 100, 64, 48], 128, 96)
    path = trajectories.interpolate([first, larger], 3)
    assert {(camera.width, camera.height) for camera in path} == {(64, 48)}
    np.testing.assert_allclose(intrinsics(path), intrinsics([first] * 3))


@pytest.mark.parametrize("degrees", [360.0, -360.0, 90.0, -90.0])
def test_orbit(degrees):
    inputs = around([10, 40, 70])
    path = poses(trajectories.orbit(inputs, 24, degrees=degrees))
    offsets = path[:, :3, 3] - TARGET
    np.testing.assert_allclose(offsets @ UP, 0.7, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(offsets[:, :2], axis=1), 2, atol=1e-9)
    distance = np.linalg.norm(offsets, axis=1, keepdims=True)
    np.testing.assert_allclose(path[:, :3, 2], -offsets / distance, atol=1e-9)  # looks at it
    np.testing.assert_allclose(path[:, 2, 0], 0, atol=1e-9)  # level
    assert (path[:, 2, 1] < 0).all()  # upright: y is down
    to_the_right = np.einsum("ni,ni->n", np.diff(path[:, :3, 3], axis=0), path[:-1, :3, 0])
    assert (np.sign(to_the_right) == np.sign(degrees)).all()
    angles = np.degrees(np.unwrap(np.arctan2(offsets[:, 1], offsets[:, 0])))
    full = abs(degrees) == 360
    np.testing.assert_allclose(angles[-1] - angles[0], degrees * (23 / 24 if full else 1))
    np.testing.assert_allclose(angles[0] if full else angles.mean(), 40)


def test_orbit_is_level_when_the_cameras_look_down_from_one_side():
    path = poses(trajectories.orbit(around([-30, 0, 30], height=3.0), 12))
    np.testing.assert_allclose((path[:, :3, 3] - TARGET) @ UP, 3, atol=1e-9)


def test_orbit_of_cameras_all_around():
    path = poses(trajectories.orbit(around([0, 90, 180, 270]), 4))
    np.testing.assert_allclose(np.linalg.norm(path[:, :3, 3] - TARGET, axis=1), np.hypot(2, 0.7))


def test_orbit_needs_a_point_or_a_distance():
    parallel = [looking([0, y, 0], [1, y, 0]) for y in (-1, 0, 1)]
    with pytest.raises(ValueError, match=r"do not meet.*distance"):
        trajectories.orbit(parallel, 5)
    apart = [looking([0, y, 0], [1, 2 * y, 0]) for y in (-1, 0, 1)]  # meet behind the cameras
    with pytest.raises(ValueError, match="do not meet"):
        trajectories.orbit(apart, 5)
    path = poses(trajectories.orbit(parallel, 5, distance=3.0, degrees=20.0))
    np.testing.assert_allclose(path[2, :3, 2], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(path[2, 1, 3], 0, atol=1e-9)
    with pytest.raises(ValueError, match="distance is -1"):
        trajectories.orbit(parallel, 5, distance=-1.0)


def test_orbit_of_cameras_that_look_straight_down():
    with pytest.raises(ValueError, match="up or down"):
        trajectories.orbit(around([0, 90, 180, 270], radius=1e-3, height=5.0), 5, distance=5.0)


def test_spiral():
    inputs = around([10, 40, 70])
    middle = inputs[1].c2w
    path = poses(trajectories.spiral(inputs, 40, turns=2.0, radius=0.3))
    local = (path[:, :3, 3] - middle[:3, 3]) @ middle[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(local[:, :2], axis=1), 0.3)
    np.testing.assert_allclose(np.abs(local[:, 2]).max(), 0.3)
    np.testing.assert_allclose(local[:, :2].mean(0), 0, atol=1e-9)
    to_target = TARGET - path[:, :3, 3]
    to_target /= np.linalg.norm(to_target, axis=1, keepdims=True)
    np.testing.assert_allclose(path[:, :3, 2], to_target, atol=1e-6)
    closed = np.concatenate([local, local[:2]])
    assert roughness(closed) < 0.4 * np.abs(np.diff(local, axis=0)).max()


def test_spiral_keeps_the_direction_of_parallel_cameras():
    parallel = [looking([0, y, 0], [1, y, 0]) for y in (-1, 0, 1)]
    path = poses(trajectories.spiral(parallel, 10))
    np.testing.assert_allclose(path[:, :3, :3], np.tile(parallel[1].c2w[:3, :3], (10, 1, 1)))
    assert np.abs(path[:, :3, 3]).max() == pytest.approx(0.25)


def test_dolly():
    inputs = around([10, 40, 70])
    path = poses(trajectories.dolly(inputs, 5, travel=2.0))
    middle = inputs[1].c2w
    local = (path[:, :3, 3] - middle[:3, 3]) @ middle[:3, :3]
    np.testing.assert_allclose(local[:, 2], [-1, -0.5, 0, 0.5, 1], atol=1e-9)
    np.testing.assert_allclose(local[:, :2], 0, atol=1e-9)
    np.testing.assert_allclose(path[:, :3, :3], np.tile(middle[:3, :3], (5, 1, 1)))


MAKE = {
    "interpolate": lambda cameras: trajectories.interpolate(cameras, 9),
    "closed": lambda cameras: trajectories.interpolate(cameras, 9, closed=True),
    "orbit": lambda cameras: trajectories.orbit(cameras, 9),
    "spiral": lambda cameras: trajectories.spiral(cameras, 9),
    "dolly": lambda cameras: trajectories.dolly(cameras, 9),
}


@pytest.mark.parametrize("origin", [[3, -8, 100], [448e3, 5.41e6, 67]])
@pytest.mark.parametrize("kind", MAKE)
def test_world_frame_and_unit_do_not_matter(kind, origin):
    """Cameras moved, turned and scaled give the path moved, turned and scaled."""
    inputs = around([0, 25, 60, 80])
    world, scale = np.eye(4), 37.0
    world[:3, :3] = Rotation.random(rng=5).as_matrix()
    world[:3, 3] = origin

    def moved(cameras):
        c2w = poses(cameras)
        c2w[:, :3, 3] *= scale
        return world @ c2w

    other = [PosedCamera(pose, [50, 50, 32, 24], 64, 48) for pose in moved(inputs)]
    np.testing.assert_allclose(poses(MAKE[kind](other)), moved(MAKE[kind](inputs)), atol=1e-6)


def test_what_a_path_cannot_be_made_from():
    one = around([0])
    with pytest.raises(ValueError, match="made from 2 cameras or more, got 1"):
        trajectories.interpolate(one, 5)
    with pytest.raises(ValueError, match="frames is 0"):
        trajectories.dolly(around([0, 1]), 0)
    with pytest.raises(ValueError, match="give the travel"):
        trajectories.dolly(one, 5)
    with pytest.raises(ValueError, match="give the radius"):
        trajectories.spiral(one * 2, 5)
    assert len(trajectories.spiral(one, 5, radius=1.0)) == 5


def test_file_round_trip_is_exact(tmp_path):
    path = trajectories.interpolate(uneven(), 7)
    camera_json.write_camera_path(tmp_path / "path.json", path)
    again = camera_json.read_camera_path(tmp_path / "path.json")
    np.testing.assert_array_equal(poses(again), poses(path))
    np.testing.assert_array_equal(intrinsics(again), intrinsics(path))
    assert [(c.width, c.height) for c in again] == [(64, 48)] * 7


def test_file_with_world_to_camera_matrices(tmp_path):
    camera = uneven()[2]
    frame = {"w": 64, "h": 48.0, "fxfycxcy": camera.fxfycxcy.tolist(), "file": "a.jpg"}
    frame["w2c"] = camera.w2c[:3].tolist()
    (tmp_path / "path.json").write_text(json.dumps({"frames": [frame]}))
    (read,) = camera_json.read_camera_path(tmp_path / "path.json")
    np.testing.assert_allclose(read.c2w, camera.c2w, atol=1e-12)


GOOD = {"w": 4, "h": 4, "fxfycxcy": [4, 4, 2, 2], "c2w": np.eye(4).tolist()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "a list, expected an object"),
        ({}, "'frames' must be a list"),
        ({"frames": []}, "'frames' must be a list"),
        ({"frames": [GOOD, 5]}, r"frames\[1\] is a int"),
        ({"frames": [GOOD, GOOD | {"w": "4"}]}, r"frames\[1\]: 'w' is \"4\", expected a finite"),
        ({"frames": [GOOD | {"w": True}]}, "'w' is true"),
        ({"frames": [GOOD | {"w": 4.5}]}, "'w' is 4.5, expected a positive whole number"),
        ({"frames": [GOOD | {"h": 0}]}, "'h' is 0"),
        ({"frames": [GOOD | {"w": 1e308}]}, "'w' is 1e\\+308, expected a positive whole number"),
        ({"frames": [{k: v for k, v in GOOD.items() if k != "fxfycxcy"}]}, "'fxfycxcy' is missing"),
        ({"frames": [GOOD | {"fxfycxcy": [1, 2, 3]}]}, r"expected finite numbers of shape \[4\]"),
        ({"frames": [GOOD | {"fxfycxcy": [-1, 2, 3, 4]}]}, "focal lengths"),
        ({"frames": [GOOD | {"fxfycxcy": [float("nan"), 2, 3, 4]}]}, "'fxfycxcy' is"),
        ({"frames": [GOOD | {"fxfycxcy": [10**400, 2, 3, 4]}]}, "'fxfycxcy' is"),
        ({"frames": [GOOD | {"c2w": np.eye(3).tolist()}]}, r"\[4, 4\] or \[3, 4\]"),
        ({"frames": [GOOD | {"c2w": (2 * np.eye(4)).tolist()}]}, "c2w"),
        ({"frames": [GOOD | {"w2c": GOOD["c2w"]}]}, "c2w and w2c pose"),
        ({"frames": [{k: v for k, v in GOOD.items() if k != "c2w"}]}, "no pose"),
        ({"camera_path": [], "frames": []}, "nerfstudio's viewer"),
    ],
)
def test_bad_files_are_refused_by_field(tmp_path, content, message):
    file = tmp_path / "path.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        camera_json.read_camera_path(file)
    assert str(file) in str(error.value)
