"""A small NAVI in the official layout: photographs of a ball whose colours tell where on its surface a pixel is."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from amradio.labelled.navi import pose_of

RADIUS = 30.0
"""mm."""
SIZE, FOCAL_LENGTH = (512, 576), 700.0
"""(height, width) px of the photographs, and px."""


def quaternion(axis: tuple[float, float, float], degrees: float) -> list[float]:
    """w, x, y, z of a rotation about an axis."""
    half = np.radians(degrees) / 2
    return [float(np.cos(half)), *(np.sin(half) * np.array(axis) / np.linalg.norm(axis)).tolist()]


def ball(camera: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A camera -> image uint8 [H, W, 3], depth in mm [H, W] (0 where there is no ball), points in the camera's space in mm [H, W, 3]."""
    pose = pose_of(camera["q"], camera["t"])
    centre = pose[:3, 3] * 1000
    rows, columns = ((np.arange(length) + 0.5 - length / 2) / FOCAL_LENGTH for length in SIZE)
    rays = np.stack((*np.broadcast_arrays(columns[None, :], rows[:, None]), np.ones(SIZE)), -1)
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - RADIUS**2
    inside = b**2 - a * c
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0)
    points = rays * depth[..., None]
    on_object = (points - centre) @ pose[:3, :3] / RADIUS
    image = np.where(inside[..., None] > 0, 127.5 + 127.5 * on_object, 127.5)
    return image.round().clip(0, 255).astype(np.uint8), depth, points


def write_scene(folder: Path, cameras: dict[str, dict]) -> None:
    """annotations.json, images and depth of one scene."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    entries = []
    for name, camera in cameras.items():
        image, depth, _ = ball(camera)
        Image.fromarray(image).save(folder / "images" / f"{name}.jpg", quality=98, subsampling=0)
        disparity = np.divide(655_350, depth, out=np.zeros(SIZE), where=depth > 0)
        Image.fromarray(disparity.round().astype(np.uint16)).save(folder / "depth" / f"{name}.png", compress_level=1)
        known = {"object_id": folder.parent.name, "scene_name": folder.name, "split": "train", "occluded": False}
        entries.append({**known, "camera": camera, "filename": f"{name}.jpg", "image_size": list(SIZE)})
    (folder / "annotations.json").write_text(json.dumps(entries))


def camera(degrees: float = 0.0, t: tuple[float, float, float] = (10.0, -8.0, 120.0)) -> dict:
    """The ball is turned by so many degrees about a slanted axis."""
    return {"q": quaternion((0.2, 1, 0.1), degrees), "t": list(t), "focal_length": FOCAL_LENGTH, "camera_model": "pixel_5"}


def small_navi(root: Path) -> Path:
    """One object with two wild photographs and two of a multi-view scene, one object without a wild set, and a folder of lists."""
    write_scene(root / "ball" / "wild_set", {"000": camera(), "001": camera(40, (-20.0, 5.0, 150.0))})
    write_scene(root / "ball" / "multiview-00-pixel_5", {"000": camera(10), "001": camera(60)})
    write_scene(root / "cup" / "multiview-00-canon_t4i", {"000": camera()})
    (root / "custom_splits").mkdir()
    return root
