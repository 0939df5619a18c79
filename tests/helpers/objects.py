"""Renders of objects on disk: a coloured ball, in the layouts that people have them in."""

import io
import json

import numpy as np
from PIL import Image

from input_pipeline.orbit import towards

GL = np.diag([1.0, -1.0, -1.0, 1.0])
FOV = 50.0


def orbit_pose(elevation, azimuth, radius=2.7):
    """Camera to world, OpenCV axes, z up: looks at the origin."""
    out = towards(float(elevation), float(azimuth))
    right = np.array([-np.sin(np.deg2rad(azimuth)), np.cos(np.deg2rad(azimuth)), 0])
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(-out, right), -out], axis=1)
    c2w[:3, 3] = radius * out
    return c2w


def ball(c2w, size=32, clear=(0, 0, 0), radius=0.8):
    """RGBA of a ball whose colour is its normal, with soft edges."""
    focal = size / 2 / np.tan(np.deg2rad(FOV) / 2)
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5 - size / 2) / focal])
    rays = np.stack([x, y, np.ones_like(x)], -1) @ c2w[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    centre = c2w[:3, 3]
    along = -(rays @ centre)
    away = np.linalg.norm(centre + along[..., None] * rays, axis=-1)
    half = np.sqrt(np.maximum(radius**2 - away**2, 0))
    normal = (centre + (along - half)[..., None] * rays) / np.maximum(radius, away)[..., None]
    alpha = np.clip((radius - away) / 0.1, 0, 1)
    colours = np.where(alpha[..., None] > 0, 255 * (0.5 + 0.45 * normal), np.array(clear))
    return np.rint(np.concatenate([colours, 255 * alpha[..., None]], -1)).astype(np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def gso_poses(columns=16, elevations=(0, 20, 40, 60)):
    """The rig of GSO's renders, or with fewer columns a part of it."""
    return [orbit_pose(e, 360 / columns * k) for e in elevations for k in range(columns)]


def write_object(folder, layout, poses, size=32, clear=(0, 0, 0), pictures=None):
    """An object in a layout; `pictures` are RGBA, or a ball's."""
    pictures = pictures or [ball(pose, size, clear) for pose in poses]
    size = len(pictures[0])
    focal = size / 2 / np.tan(np.deg2rad(FOV) / 2)
    frames = []
    for i, (pose, pixels) in enumerate(zip(poses, pictures, strict=True)):
        w2c, image = np.linalg.inv(pose), png(pixels)
        if layout == "opencv_cameras":
            name = f"renderings/{i:08d}_rgba.png"
            camera = {"w": size, "h": size, "fx": focal, "fy": focal, "cx": size / 2}
            frames.append(camera | {"cy": size / 2, "w2c": w2c.tolist(), "file_path": name})
        elif layout == "blender":
            name = f"train/r_{i}.png"
            matrix = (pose @ GL).tolist()
            frames.append({"file_path": f"./train/r_{i}", "transform_matrix": matrix})
        elif layout == "lgm":
            name = f"rgb/{i:03d}.png"
            (folder / "pose").mkdir(parents=True, exist_ok=True)
            np.savetxt(folder / "pose" / f"{i:03d}.txt", pose.reshape(1, 16))
        elif layout == "gobjaverse":
            name = f"campos_512_v4/{i:05d}/{i:05d}.png"
            values = dict(zip("xyz", pose[:3, :3].T.tolist(), strict=True))
            values |= {"origin": pose[:3, 3].tolist(), "x_fov": np.deg2rad(FOV)}
            (folder / name).parent.mkdir(parents=True)
            (folder / name).with_suffix(".json").write_text(json.dumps(values))
        else:
            name = f"{i:03d}.png"
            folder.mkdir(parents=True, exist_ok=True)
            axes = GL if layout == "zero123" else np.eye(4)
            np.save(folder / f"{i:03d}.npy", (axes @ w2c)[:3])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    if layout == "opencv_cameras":
        (folder / "opencv_cameras.json").write_text(json.dumps(frames))
    if layout == "blender":
        content = {"camera_angle_x": np.deg2rad(FOV), "frames": frames}
        (folder / "transforms_train.json").write_text(json.dumps(content))
