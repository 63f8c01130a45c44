"""Promptable segmentation: SAM's own neck, prompt encoder and mask decoder on a student's features, and on the teacher's."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from ...config import AsTuple, Side
from ...errors import UserError, nearest
from ...labelled.instances import AnyInstances, Instances, InstanceSet, SceneInstancesSettings
from ...teachers.base import Teacher
from ...teachers.mask_decoder import EncodedImage, MaskDecoder
from ..base import Bench, Evaluation, EvaluationSettings, Framing, Metric, Predict, Result, Sizes
from ..sharing import read_windows, windows_of
from .mask_prompts import DISC_PARTS, discs, filled_boxes, inner_point, ious

BATCH = 4
"""Images that a model sees at once."""
Prompt = Literal["point", "box"]


class PromptableSegmentationSettings(EvaluationSettings):
    """Mean IoU of SAM's masks, over annotations, for one click and for the annotated box (EfficientViT-SAM's protocol, as in AM-RADIO).

    Of the three masks of a prompt the one with the best predicted IoU counts. The click is ours: the innermost pixel of the mask.
    """

    view: ClassVar[Framing] = "whole"

    type: Literal["promptable_segmentation"] = "promptable_segmentation"
    data: AnyInstances
    """Images with masks."""
    prompts: list[Prompt] = pydantic.Field(default=["point", "box"], min_length=1)
    """point: one click within the object; box: the box around it."""
    bins: Annotated[tuple[Side, Side], AsTuple] = (32.0, 96.0)
    """px of a side: objects of at most the first squared are small, of at least the second squared large; COCO's are 32 and 96."""
    heads: list[str] | None = None
    """Names of teachers with a mask decoder (SAM); null for all."""

    def protocol_sizes(self, bench: Bench) -> Sizes:
        """A head sees the square that its SAM sees, at SAM's own size (1024 px); scenes of a few px are seen at the size of training."""
        able = {name: teacher for name, teacher in bench.teachers.items() if teacher.mask_decoder is not None and teacher.input_size}
        if isinstance(self.data, SceneInstancesSettings):
            return {f"student/{name}": bench.size_of_head(name) for name in able}
        return {f"student/{name}": teacher.input_size or 0 for name, teacher in able.items()}

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "PromptableSegmentationSettings":
        if not 0 < self.bins[0] < self.bins[1]:
            raise ValueError(f"bins: two numbers above 0, the smaller first, found {list(self.bins)}")
        return self

    def build(self) -> "PromptableSegmentation":
        """Opens the data; raises UserError where they are missing or damaged."""
        return PromptableSegmentation(self.data.build(), tuple(dict.fromkeys(self.prompts)), self.bins, self.heads)


class PromptableSegmentation(Evaluation):
    """Mean IoU of a teacher's mask decoder on its own map and on that of its head: the evaluation `promptable_segmentation`."""

    is_shared = True

    def __init__(
        self,
        instances: InstanceSet,
        prompts: Sequence[Prompt] = ("point", "box"),
        bins: tuple[float, float] = (32.0, 96.0),
        heads: Sequence[str] | None = None,
    ):
        self.instances, self.prompts, self.bins, self.heads = instances, prompts, bins, heads

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where no teacher has a mask decoder, or none of the rows has its features."""
        _groups(predict, bench, self.heads)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """`point`, `box` and each of them by size (`box_small`), in %, for each teacher with a mask decoder and for its head.

        Floors: the filled box; the best of a few discs around the click, one radius for all. Raises UserError where no teacher has a
        mask decoder.
        """
        groups = _groups(predict, bench, self.heads)
        windows = windows_of(len(self.instances), BATCH)

        def measure(numbers: range) -> dict[int, _Overlaps]:
            title = f"masks of {len(self.instances):,} images"
            chosen = [windows[number] for number in numbers]
            read = read_windows(self.instances.read, chosen, bench.num_workers, bench.progress, title)
            return {number: self._overlaps(images, groups) for number, images in zip(numbers, read, strict=True)}

        return _result(bench.share.collect(measure, len(windows)), self.prompts, self.bins, len(self.instances))

    def _overlaps(self, images: Sequence[Instances], groups: Sequence[tuple[Teacher, Predict]]) -> "_Overlaps":
        """Of at most BATCH images; those without a mask are left out."""
        seen = _Overlaps(self.prompts)
        batch = [image for image in images if len(image.masks)]
        for image in batch:
            seen.add_truth(image)
        for teacher, calls in groups if batch else ():
            self._masks_of(batch, teacher, calls, seen)
        return seen

    def _masks_of(self, batch: Sequence[Instances], teacher: Teacher, calls: Predict, seen: "_Overlaps") -> None:
        device = teacher.mean.device
        squares = torch.cat([to_square(teacher, image.image) for image in batch])
        for name, call in calls.items():
            spatial = call(squares).spatial
            assert spatial is not None, "heads without a map were sorted out before"
            for number, image in enumerate(batch):
                truth = torch.from_numpy(image.masks).to(device)
                for prompt in self.prompts:
                    masks = prompted(teacher, spatial[number : number + 1], prompt, coordinates(image, prompt).to(device), image.image)
                    seen.add(name, prompt, ious(masks, truth))


def to_square(teacher: Teacher, image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float [1, 3, S, S] in [0, 1] on the teacher's device, as SAM and a student see it (`MaskDecoder.prepare`)."""
    return MaskDecoder(teacher).prepare(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).copy()))


def coordinates(image: Instances, prompt: Prompt) -> Tensor:
    """Points [N, 2] (x, y) or boxes [N, 4] in px of the image, one for each mask."""
    if prompt == "box":
        return torch.from_numpy(image.boxes)
    return torch.tensor([inner_point(mask) for mask in image.masks], dtype=torch.float32).reshape(-1, 2)


def prompted(teacher: Teacher, spatial: Tensor, prompt: Prompt, places: Tensor, image: np.ndarray) -> Tensor:
    """Masks bool [N, H, W] for N prompts on one image: for each the mask with the best predicted IoU.

    spatial: [1, h, w, D], features before the neck of the square that `to_square` makes; places: as `coordinates` gives them.
    """
    seen = EncodedImage(spatial, *image.shape[:2])
    decoder = MaskDecoder(teacher)
    predicted = decoder(seen, boxes=places) if prompt == "box" else decoder(seen, points=places)
    return predicted.masks[:, 0]


def _groups(predict: Predict, bench: Bench, names: Sequence[str] | None) -> list[tuple[Teacher, Predict]]:
    """Each teacher with a mask decoder and its rows `student/NAME` (where that head has a map) and `teacher/NAME`."""
    able = {name: teacher for name, teacher in bench.teachers.items() if teacher.mask_decoder is not None}
    if not able:
        loaded = ", ".join(f"'{name}'" for name in bench.teachers) or "no teacher"
        raise UserError(
            f"promptable_segmentation: a mask decoder is needed, and none of the teachers has one (there is: {loaded}); "
            "add a teacher of type sam under the name of the head"
        )
    unknown = [name for name in names or () if name not in able]
    if unknown:
        raise UserError(*(f"heads: '{name}' is no teacher with a mask decoder; {nearest(name, able)}" for name in unknown))
    config = bench.model.config.heads if bench.model is not None else {}
    groups: list[tuple[Teacher, Predict]] = []
    for name in names or able:
        rows = {row: predict[row] for row in (f"student/{name}", f"teacher/{name}") if row in predict}
        if name in config and config[name].spatial is None:
            rows.pop(f"student/{name}", None)
        if rows:
            groups.append((able[name], rows))
    if not groups:
        problem = f"none of the rows ({', '.join(predict)}) has features for a mask decoder"
        raise UserError(f"promptable_segmentation: {problem}; name student/{next(iter(able))}")
    return groups


class _Overlaps:
    """IoUs of the masks of some images, and the trivial ones."""

    def __init__(self, prompts: Sequence[Prompt]):
        self.prompts = prompts
        self.digests: list[bytes] = []
        """SHA-256 of each image with its masks and boxes."""
        self.areas: list[float] = []
        self.overlaps: dict[str, dict[Prompt, list[Tensor]]] = {}
        self.boxes: list[Tensor] = []
        self.discs: list[Tensor] = []

    def add_truth(self, image: Instances) -> None:
        self.areas += image.areas.tolist()
        content = (image.image, np.packbits(image.masks), image.boxes)
        self.digests.append(hashlib.sha256(b"".join(part.tobytes() for part in content)).digest())
        truth = torch.from_numpy(image.masks)
        height, width = image.masks.shape[1:]
        if "box" in self.prompts:
            self.boxes.append(ious(filled_boxes(torch.from_numpy(image.boxes), height, width), truth))
        if "point" in self.prompts:
            points = coordinates(image, "point")
            radii = [part * max(height, width) for part in DISC_PARTS]
            self.discs.append(torch.stack([ious(discs(points, radius, height, width), truth) for radius in radii]))

    def add(self, name: str, prompt: Prompt, overlaps: Tensor) -> None:
        self.overlaps.setdefault(name, {}).setdefault(prompt, []).append(overlaps.cpu())


def _result(parts: Sequence[_Overlaps], prompts: Sequence[Prompt], bins: tuple[float, float], num_images: int) -> Result:
    """The table of all images; raises UserError where there was not one mask."""
    areas = [area for part in parts for area in part.areas]
    if not areas:
        raise UserError("promptable_segmentation: there is no mask that counts; see min_area and crowds")
    members = _members(torch.tensor(areas, dtype=torch.float64), bins)
    counted = [part.overlaps for part in parts if part.areas]
    rows: dict[str, dict[str, float]] = {name: {} for name in counted[0]}
    for name, row in rows.items():
        for prompt in prompts:
            row |= _means(prompt, torch.cat([overlaps for by_row in counted for overlaps in by_row[name][prompt]]), members)
    floors: dict[str, float] = {}
    notes: list[str] = []
    if "box" in prompts:
        floors |= _means("box", torch.cat([overlaps for part in parts for overlaps in part.boxes]), members)
        notes.append("the floor of box is the filled box")
    if "point" in prompts:
        table = torch.cat([overlaps for part in parts for overlaps in part.discs], 1)
        best = int(table.mean(1).argmax())
        floors |= _means("point", table[best], members)
        notes.append(f"the floor of point is a disc of {DISC_PARTS[best]:.3f} long sides, the best of {len(DISC_PARTS)} radii")
    counts = {"images": num_images} | {size: int(chosen.sum()) for size, chosen in members.items()}
    measured = next(iter(rows.values()))
    return Result(
        [metric for prompt in prompts for metric in _metrics(prompt) if metric.name in measured],
        rows,
        {"masks" if size == "all" else size: n for size, n in counts.items()},
        hashlib.sha256(b"".join(digest for part in parts for digest in part.digests)).hexdigest()[:16],
        floors,
        notes=notes,
        floor="a disc around the click or the filled box",
    )


def _members(areas: Tensor, bins: tuple[float, float]) -> dict[str, Tensor]:
    small, large = areas <= bins[0] ** 2, areas >= bins[1] ** 2
    return {"all": torch.ones_like(small), "large": large, "medium": ~small & ~large, "small": small}


def _metrics(prompt: Prompt) -> list[Metric]:
    """`box` over all masks, which the table has, and `box_large`, ..."""
    by_size = [Metric(f"{prompt}_{size}", f"{prompt} {size}", headline=False) for size in ("large", "medium", "small")]
    return [Metric(prompt, prompt), *by_size]


def _means(prompt: Prompt, overlaps: Tensor, members: dict[str, Tensor]) -> dict[str, float]:
    """In %, by the names of `_metrics`; no entry for a size that does not occur."""
    return {
        prompt if size == "all" else f"{prompt}_{size}": 100 * overlaps[chosen].mean().item()
        for size, chosen in members.items()
        if chosen.any()
    }
