"""Detection: COCO's numbers of a detector that was trained on the student."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import pydantic

from ...config import AsTuple, Side, UserPath
from ...downstream.detection.settings import Backend
from ...errors import UserError
from ...labelled.instances import AnyInstances, Instances, InstanceSet
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result
from ..sharing import windows_of

if TYPE_CHECKING:  # torchvision's detectors take half a second to import, and only this evaluation wants them
    from ...downstream.detection.detector import Detector
    from ...downstream.detection.scoring import Predictions

ROW = "student"
"""The one row that there is: the student, with the detector on it."""
HEADLINES = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
"""Columns of the printed table."""


class CocoDetectionSettings(EvaluationSettings):
    """COCO's average precision and recall, over overlaps of 0.5 to 0.95, of the boxes (and masks) of a trained detector.

    The detector is that of `amradio detect train`, with the student inside it; images are seen whole, their long side that of the canvas.
    """

    type: Literal["coco_detection"] = "coco_detection"
    data: AnyInstances
    """Images with all of their objects, crowds included; `min_area` and `crowds` do not count here."""
    detector: UserPath | None = None
    """The run folder or model folder of `amradio detect train`; null for the folder that is evaluated."""
    bins: Annotated[tuple[Side, Side], AsTuple] = (32.0, 96.0)
    """px of a side: objects below the first squared are small, from the second squared on large; COCO's are 32 and 96."""
    backend: Literal["auto", Backend] = "auto"
    """What computes the numbers, which are the same: auto is faster_coco_eval where it is installed, else pycocotools."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "CocoDetectionSettings":
        if not 0 < self.bins[0] < self.bins[1]:
            raise ValueError(f"bins: two numbers above 0, the smaller first, found {list(self.bins)}")
        return self

    def beside(self, path: str) -> Self:
        """With the detector of that folder where none is named."""
        return self if self.detector is not None else self.model_copy(update={"detector": path})

    def build(self) -> "CocoDetection":
        """Opens the data; raises UserError where they are missing or damaged."""
        return CocoDetection(self, self.data.build("score"))


class CocoDetection(Evaluation):
    """Average precision and recall of a detector: the evaluation `coco_detection`."""

    is_shared = True

    def __init__(self, settings: CocoDetectionSettings, images: InstanceSet):
        """images: a set for the score (`InstancesSettings.build`)."""
        self.settings, self.images = settings, images
        self.detector: Detector | None = None

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where there is no detector, or it has other classes than the data or takes no images of the size asked for."""
        from ...downstream.detection.examples import same_classes
        from ...downstream.detection.files import load_detector
        from ...downstream.detection.scoring import default_backend, find_backend

        find_backend(default_backend() if self.settings.backend == "auto" else self.settings.backend)
        if ROW not in predict:
            raise UserError(f"models: coco_detection measures the row {ROW}; found {', '.join(predict) or 'none'}")
        path = self.settings.detector
        if path is None:
            raise UserError("detector: coco_detection measures a trained detector; give the folder that `amradio detect train` wrote")
        try:
            detector = load_detector(path)
        except UserError as error:
            raise UserError(*(f"detector: {problem}" for problem in error.problems)) from None
        same_classes(detector.classes, self.images.classes, "data")
        size = self.settings.image_size or bench.image_size
        if size is not None:
            detector.resize(size, "image_size")
        self.detector = detector

    def run(self, predict: Predict, bench: Bench) -> Result:
        """COCO's numbers in %: `box_ap`, `box_ap50`, ... and of Mask R-CNN `mask_ap`, ...; a size without an object has none."""
        from ...downstream.detection.scoring import BATCH, coco_scores, joined

        if self.detector is None:
            self.check(predict, bench)
        assert self.detector is not None, "check read it"
        detector, settings, count = self.detector.to(bench.device), self.settings, len(self.images)
        side = detector.image_size
        windows = windows_of(count, BATCH)
        parts = bench.share.collect(lambda numbers: self._detect(detector, [windows[number] for number in numbers], bench), len(windows))
        detected = joined(part for part, _ in parts)
        digest = hashlib.sha256(b"".join(digest for _, digest in parts))
        backend = None if settings.backend == "auto" else settings.backend
        scores = coco_scores(detected, detector.classes, settings.bins, backend)
        return Result(
            metrics=[
                Metric(name, name.replace("_", " ").replace("ap", "AP").replace("ar", "AR"), headline=name in HEADLINES) for name in scores
            ],
            rows={ROW: scores},
            counts={
                "images": count,
                "objects": len(detected.annotations),
                "detections": len(detected.boxes),
                "classes": len(detector.classes),
            },
            fingerprint=digest.hexdigest()[:16],
            inputs={ROW: {(side, side): sum(len(windows[number]) for number in bench.share.numbers(len(windows)))}},
        )

    def _detect(self, detector: "Detector", windows: Sequence[range], bench: Bench) -> "dict[int, tuple[Predictions, bytes]]":
        """{number of a window of BATCH images: (what is found in them and annotated, a digest of images and annotations)}."""
        from ...downstream.detection.scoring import BATCH, by_window
        from ...downstream.detection.scoring import predict as detections

        numbers = [number for window in windows for number in window]
        digests = {window[0] // BATCH: hashlib.sha256() for window in windows}

        def watched(images: Iterator[Instances]) -> Iterator[Instances]:
            title = f"detecting in {len(self.images):,} images"
            for number, image in zip(numbers, bench.progress(images, title, len(numbers)), strict=True):
                for part in (image.image, np.packbits(image.masks), image.boxes, image.labels, image.crowds):
                    digests[number // BATCH].update(part.tobytes())
                yield image

        detected = by_window(detections(detector, self.images, numbers, bench.num_workers, bench.autocast, watched), digests)
        return {number: (detected[number], digest.digest()) for number, digest in digests.items()}
