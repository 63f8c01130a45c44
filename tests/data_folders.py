"""The same few images in every layout that the data room reads."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from amradio.data import SourceSettings
from amradio.data.folder import FolderSettings
from amradio.data.huggingface import HuggingFaceSettings
from amradio.data.mixture import MixtureSettings
from amradio.data.scene_source import ScenesSettings
from amradio.data.webdataset import WebDatasetSettings

BROKEN = b"\xff\xd8\xff\xe0 this was a JPEG once"


def jpeg(number: int, width: int = 48, height: int = 36) -> bytes:
    """A picture like no other number's."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def make_folder(path: Path, count: int = 24, broken: tuple[int, ...] = ()) -> FolderSettings:
    for number in range(count):
        file = path / f"class{number % 3}" / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(BROKEN if number in broken else jpeg(number))
    return FolderSettings(path=str(path))


def make_shards(path: Path, counts: tuple[int, ...] = (7, 5, 9, 3), broken: tuple[int, ...] = (), **options) -> WebDatasetSettings:
    """Shards in img2dataset's layout: an image, a caption and metadata for each number."""
    path.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(path / f"{shard:05d}.tar", "w") as archive:
            for _ in range(count):
                members = {"jpg": BROKEN if number in broken else jpeg(number), "json": b"{}", "txt": b"a caption"}
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
                number += 1
    return WebDatasetSettings(path=str(path / f"{{00000..{len(counts) - 1:05d}}}.tar"), **options)


def state_counts(path: Path, counts: tuple[int, ...]) -> None:
    for shard, count in enumerate(counts):
        (path / f"{shard:05d}_stats.json").write_text(json.dumps({"count": count + 2, "successes": count}))


def make_table(path: Path, count: int = 24, broken: tuple[int, ...] = ()) -> HuggingFaceSettings:
    import datasets

    rows = [{"bytes": BROKEN if number in broken else jpeg(number), "path": None} for number in range(count)]
    features = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": rows}, features=features).save_to_disk(str(path))
    return HuggingFaceSettings(path=str(path), image="picture")


def make_mixture(path: Path, broken: tuple[int, ...] = ()) -> MixtureSettings:
    return MixtureSettings(
        sources={
            "files": make_folder(path / "files", broken=broken),
            "shards": make_shards(path / "shards", broken=broken, shuffle_buffer=4),
            "drawn": ScenesSettings(length=50, image_size=32),
        },
        weights={"files": 5, "shards": 3, "drawn": 2.0},
    )


def make(kind: str, path: Path, broken: tuple[int, ...] = ()) -> SourceSettings:
    """A source of the kind, with at least 24 images; those numbered `broken` cannot be read (scenes never are)."""
    if kind == "scenes":
        return ScenesSettings(length=24, image_size=32)
    if kind == "webdataset":
        return make_shards(path, broken=broken, shuffle_buffer=4)
    return {"folder": make_folder, "huggingface": make_table, "mixture": make_mixture}[kind](path, broken=broken)


def make_coco(path: Path, side: int = 48) -> Path:
    """COCO's format: `images/` and `instances.json` with squares of two categories in three pictures, and a fourth without objects."""
    (path / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(4):
        (path / "images" / f"{number:012d}.jpg").write_bytes(jpeg(number, side, side))
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": side, "width": side})
        for place in range(number):
            x, y, width = 4 + 10 * place, 6 + 5 * place, 14 + 3 * place
            corners = [float(corner) for corner in (x, y, x + width, y, x + width, y + width, x, y + width)]
            box = {"bbox": [x, y, width, width], "area": width**2, "segmentation": [corners], "category_id": (3, 8)[place % 2]}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0} | box)
    categories = [{"id": 3, "name": "cup"}, {"id": 8, "name": "plate"}]
    (path / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def make_coco_of_scenes(path: Path, length: int = 3, seed: int = 2) -> Path:
    """The same layout with generated scenes, lossless, with masks as RLE and all of their categories."""
    from pycocotools import mask as coco

    from amradio.labelled.instances import SceneInstancesSettings

    (path / "images").mkdir(parents=True, exist_ok=True)
    scenes = SceneInstancesSettings(length=length, seed=seed).build()
    images, annotations = [], []
    for number in range(length):
        scene = scenes.read(number)
        Image.fromarray(scene.image).save(path / "images" / f"{number}.png")
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for mask, (x0, y0, x1, y1), label in zip(scene.masks, scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            shape = {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "segmentation": encoded | {"counts": encoded["counts"].decode()},
            }
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "category_id": label} | shape)
    categories = [{"id": label, "name": name} for label, name in enumerate(scenes.classes)]
    (path / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
