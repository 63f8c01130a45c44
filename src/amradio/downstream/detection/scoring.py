"""COCO's twelve numbers of a detector, by pycocotools, or by faster-coco-eval where that is installed."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ...data.loading_processes import read_each
from ...errors import UserError
from ...labelled.instances import Instances, InstanceSet
from ...labelled.masks import find_pycocotools
from .detector import Detector
from .examples import View, lay_out, whole_view
from .settings import Backend

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
"""COCO's numbers in its own order: average precision over overlaps of 0.5 to 0.95, at 0.5, at 0.75 and by size; average recall with 1, 10
and 100 detections an image, and by size."""
BINS = (32.0, 96.0)
"""px of a side: COCO's bounds of small and large."""
BATCH = 4
"""Images that a detector sees at once."""


class Predictions(NamedTuple):
    """What is annotated in some images, and what a detector finds there, as COCO's JSON has it."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    boxes: list[dict[str, Any]]
    """Detections; each with a `segmentation` where the detector predicts masks."""


def joined(parts: Iterable[Predictions]) -> Predictions:
    """Those of several processes as one, in the order of the images."""
    parts = list(parts)
    images, annotations, boxes = ([row for part in parts for row in part[kind]] for kind in range(3))
    return Predictions(
        sorted(images, key=lambda row: row["id"]),
        sorted(annotations, key=lambda row: row["image_id"]),
        sorted(boxes, key=lambda row: row["image_id"]),
    )


def by_window(predictions: Predictions, windows: Iterable[int]) -> dict[int, Predictions]:
    """{number of a window of BATCH images: those of its images}, for all `windows`; what `joined` puts together again."""
    parts = {number: Predictions([], [], []) for number in windows}
    for rows, kind, key in zip(predictions, Predictions._fields, ("id", "image_id", "image_id"), strict=True):
        for row in rows:
            getattr(parts[row[key] // BATCH], kind).append(row)
    return parts


def predict(
    detector: Detector,
    images: InstanceSet,
    numbers: Sequence[int],
    num_workers: int | None = 0,
    autocast: torch.dtype | None = None,
    watch: Callable[[Iterator[Instances]], Iterator[Instances]] = iter,
) -> Predictions:
    """Detections in the images of these numbers, each whole, its long side that of the detector's canvas.

    detector: in evaluation mode. num_workers: processes that read. autocast: precision of the student, None for that of its weights.
    watch: sees the images on their way, e.g. a progress bar.
    """
    device, detected = detector.student.mean.device, Predictions([], [], [])
    waiting: list[tuple[int, Instances]] = []

    def flush() -> None:
        """Detects in the images that are waiting."""
        side = detector.image_size
        laid = [lay_out(image.image, _whole(image, side), side) for _, image in waiting]
        canvas = torch.from_numpy(np.stack([pixels.transpose(2, 0, 1) for pixels, _, _ in laid])).to(device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            detections = detector.detect(canvas, [(height, width) for _, height, width in laid])
        for (number, image), result in zip(waiting, detections, strict=True):
            _add_truth(detected, number, image)
            detected.boxes.extend(_results(number, image, {name: value.cpu() for name, value in result.items()}, side))
        waiting.clear()

    items = (Instances(*image) for image in read_each(images.read, numbers, num_workers))  # pinning makes lists of tuples
    for number, image in zip(numbers, watch(items), strict=True):
        waiting.append((number, image))
        if len(waiting) == BATCH:
            flush()
    if waiting:
        flush()
    return detected


def _whole(image: Instances, side: int) -> View:
    height, width = image.image.shape[:2]
    return whole_view(height, width, side)


def _add_truth(into: Predictions, number: int, image: Instances) -> None:
    height, width = image.image.shape[:2]
    into.images.append({"id": number, "height": height, "width": width})
    coco = find_pycocotools()
    for mask, (x0, y0, x1, y1), area, label, crowd in zip(
        image.masks, image.boxes.tolist(), image.areas.tolist(), image.labels.tolist(), image.crowds.tolist(), strict=True
    ):
        if label >= 0:
            entry = {"image_id": number, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "iscrowd": int(crowd)}
            into.annotations.append(entry | {"segmentation": coco.encode(np.asfortranarray(mask.astype(np.uint8)))})


def _results(number: int, image: Instances, detected: Mapping[str, torch.Tensor], side: int) -> list[dict[str, Any]]:
    height, width = image.image.shape[:2]
    boxes = detected["boxes"] / whole_view(height, width, side).scale
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2, dtype=boxes.dtype))
    rows: list[dict[str, Any]] = [
        {"image_id": number, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for (x0, y0, x1, y1), label, score in zip(boxes.tolist(), detected["labels"].tolist(), detected["scores"].tolist(), strict=True)
    ]
    if "masks" in detected and rows:
        masks = paste_masks_in_image(detected["masks"], boxes, (height, width)) >= 0.5
        for row, mask in zip(rows, masks[:, 0].numpy(), strict=True):
            row["segmentation"] = find_pycocotools().encode(np.asfortranarray(mask.astype(np.uint8)))
    return rows


def default_backend() -> Backend:
    """faster-coco-eval where it is installed: the same numbers, quicker on many images."""
    return "faster_coco_eval" if find_spec("faster_coco_eval") is not None else "pycocotools"


def find_backend(backend: Backend) -> tuple[Any, Any]:
    """COCO and COCOeval of a backend. Raises UserError where it is not installed."""
    if backend == "faster_coco_eval":
        try:
            from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("backend: faster-coco-eval is not installed; pip install faster-coco-eval, or take pycocotools") from None
        return COCO, COCOeval_faster
    find_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def coco_scores(
    predictions: Predictions, classes: Sequence[str], bins: tuple[float, float] = BINS, backend: Backend | None = None
) -> dict[str, float]:
    """`box_ap`, `box_ap50`, ... and with masks `mask_ap`, ..., in %; no entry where there is no object of a size.

    predictions: of all images. bins: px of a side, below the first small, from the second on large. Raises UserError where there is no
    object.
    """
    if all(annotation["iscrowd"] for annotation in predictions.annotations):
        raise UserError("there is no object with a category in these images, crowds aside, so nothing can be measured; give others")
    coco_class, evaluator_class = find_backend(backend or default_backend())
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    numbered = [annotation | {"id": number} for number, annotation in enumerate(predictions.annotations, 1)]
    kinds = {"bbox": "box"} | ({"segm": "mask"} if any("segmentation" in row for row in predictions.boxes) else {})
    scores: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = {"info": {}, "images": predictions.images, "annotations": numbered, "categories": categories}
        truth.createIndex()
        for kind, prefix in kinds.items():
            other = "segmentation" if kind == "bbox" else "bbox"
            rows = [{name: value for name, value in row.items() if name != other} for row in predictions.boxes]
            if not rows:
                scores |= {f"{prefix}_{name}": 0.0 for name in NAMES[:3]}
                continue
            evaluator = evaluator_class(truth, truth.loadRes(rows), kind)
            small, large = bins[0] ** 2, bins[1] ** 2
            evaluator.params.areaRng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            scores |= {f"{prefix}_{name}": 100 * float(value) for name, value in zip(NAMES, evaluator.stats, strict=False) if value >= 0}
    return scores
