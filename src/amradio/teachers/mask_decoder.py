"""Masks for clicks and boxes: SAM's neck, prompt encoder and mask decoder on features of SAM itself or of a student's head."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError, brief
from .automatic_masks import AutomaticMasks, MaskFilters, automatic_masks
from .base import MaskModel, Teacher

PROMPTS = 64
"""Masks of one image that the decoder makes at once."""

Coordinates = Tensor | Sequence[Any]
"""A tensor, or nested lists that make one."""


class EncodedImage(NamedTuple):
    """The features of an image, and its size."""

    spatial: Tensor
    """[1, h, w, D], features before SAM's neck of the square that `MaskDecoder.prepare` makes of the image, on any grid."""
    height: int
    """px of the image before `prepare`."""
    width: int
    """px of the image before `prepare`."""


class Masks(NamedTuple):
    """Masks of P prompts, the best of each first."""

    masks: Tensor
    """bool [P, M, H, W], on the image as it was given."""
    scores: Tensor
    """float32 [P, M], the IoU that SAM predicts."""


class MaskDecoder(nn.Module):
    """Clicks and boxes -> masks. Encode an image once (`look`), then prompt it any number of times."""

    def __init__(
        self,
        teacher: Teacher,
        encode: Callable[[Tensor, int | None], Tensor] | None = None,
        read: Callable[[Any], Tensor] | None = None,
    ):
        """Keeps the teacher and, for a student's head, the two functions that lead to that head's features.

        Args:
            teacher: one with a `mask_decoder`.
            encode: from a square float [1, 3, S, S] in [0, 1] and the side in px at which the student should see it (None for its own
                choice) to features [1, h, w, D]; None for the teacher's own features.
            read: from a picture (path, Pillow image, array) to [3, H, W]; None where images are tensors only.
        """
        super().__init__()
        assert teacher.mask_decoder is not None
        self.teacher = teacher
        self.read = read
        self.encode = encode or (lambda square, _: _present(teacher(square).spatial))

    @property
    def mask_model(self) -> MaskModel:
        """The teacher's capability."""
        model = self.teacher.mask_decoder
        assert model is not None
        return model

    def prepare(self, image: Tensor) -> Tensor:
        """The square that the teacher sees, float [1, 3, S, S] in [0, 1] on its device.

        Args:
            image: [3, H, W], float in [0, 1] or uint8.

        Raises UserError for another shape or type.
        """
        if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise UserError(f"image: expected [3, H, W], uint8 or float in [0, 1], found {image.dtype} {list(image.shape)}")
        return self.mask_model.prepare_image(image)

    def look(self, image: Any, image_size: int | None = None) -> EncodedImage:
        """Computes the features of a picture, for any number of prompts.

        Args:
            image: a tensor as for `prepare`, or whatever `amradio.read_image` takes (a path, a Pillow image, an array).
            image_size: px of the side of the square that the student sees; None for the size at which its head was trained.
        """
        if self.read is not None:
            image = self.read(image)
        return EncodedImage(self.encode(self.prepare(image), image_size), image.shape[-2], image.shape[-1])

    def forward(
        self,
        image: Any,
        *,
        points: Coordinates | None = None,
        labels: Coordinates | None = None,
        boxes: Coordinates | None = None,
        best: int = 1,
    ) -> Masks:
        """Masks for P prompts on one image; all coordinates are in px of the image. Give points, boxes or both.

        Args:
            image: what `look` returned, or a picture as for `look`.
            points: [P, 2], a click (x, y) for each prompt, or [P, N, 2], N clicks for each.
            labels: [P, N], 1 on the object, 0 off it, -1 for no point; None for 1.
            boxes: [P, 4], (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1.
            best: how many masks of each prompt are returned, those of the highest predicted IoU first.

        Raises UserError for a wrong shape, a point outside the image and a box that does not overlap it.
        """
        num_masks = self.mask_model.num_masks
        if not isinstance(best, int) or not 1 <= best <= num_masks:
            raise UserError(f"best: there are {num_masks} masks of a prompt, found {brief(best)}; take 1 to {num_masks}")
        prompts = _prompts(points, labels, boxes)
        seen = image if isinstance(image, EncodedImage) else self.look(image)
        _check_places(prompts, seen.height, seen.width)
        count, device = len(next(iter(prompts.values()))), seen.spatial.device
        for name in prompts.keys() & {"points", "boxes"}:
            prompts[name] = self.mask_model.scale_prompts(prompts[name], seen.height, seen.width)
        parts = [
            self._masks(seen, {name: values[start : start + PROMPTS].to(device)[None] for name, values in prompts.items()}, best)
            for start in range(0, count, PROMPTS)
        ]
        if not parts:
            empty = torch.zeros(0, best, seen.height, seen.width, dtype=torch.bool, device=device)
            return Masks(empty, torch.zeros(0, best, device=device))
        return Masks(*(torch.cat(kind) for kind in zip(*parts, strict=True)))

    @torch.no_grad()
    def everything(
        self, image: Any, *, points_per_side: int = 32, crop_layers: int = 0, filters: MaskFilters | None = None
    ) -> AutomaticMasks:
        """Masks of whatever is in a picture: all masks of a grid of clicks, filtered as Segment Anything's automatic generator does.

        Args:
            image: a picture as for `look`.
            points_per_side: clicks along each side, 1 to 512.
            crop_layers: 0 for the picture alone; 1 adds four crops that overlap, 2 sixteen more, for small objects; each is encoded.
            filters: which masks are kept; None for the published ones. A student's masks are less certain than SAM's: lower `min_iou`
                and `min_stability` where little is left.

        Raises UserError for a picture that cannot be read and for other numbers.
        """
        for name, value, least, most in (("points_per_side", points_per_side, 1, 512), ("crop_layers", crop_layers, 0, 4)):
            if not isinstance(value, int) or not least <= value <= most:
                raise UserError(f"{name}: expected a whole number from {least} to {most}, found {brief(value)}")
        if self.read is not None:
            image = self.read(image)
        self.prepare(image)  # refuses what is no picture
        return automatic_masks(image, self._all_masks, points_per_side, crop_layers, filters or MaskFilters())

    def _all_masks(self, crop: Tensor, clicks: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Some clicks [P, 2] at a time with their logits [P, M, H, W] on a crop [3, H, W] and their predicted IoU [P, M]."""
        seen = EncodedImage(self.encode(self.prepare(crop), None), crop.shape[-2], crop.shape[-1])
        for points in clicks.split(PROMPTS):
            scaled = self.mask_model.scale_prompts(points[:, None], seen.height, seen.width)
            logits, scores = self._logits(seen, {"points": scaled.to(seen.spatial.device)[None]}, self.mask_model.num_masks)
            yield points, logits, scores

    def _masks(self, seen: EncodedImage, prompts: dict[str, Tensor], best: int) -> Masks:
        logits, scores = self._logits(seen, prompts, best)
        return Masks(logits > 0, scores)

    def _logits(self, seen: EncodedImage, prompts: dict[str, Tensor], best: int) -> tuple[Tensor, Tensor]:
        """Logits [P, M, H, W] on the image and predicted IoU [P, M] of the `best` masks of each prompt."""
        logits, scores = self.mask_model.masks(
            seen.spatial, points=prompts.get("points"), labels=prompts.get("labels"), boxes=prompts.get("boxes")
        )
        top, order = scores.topk(best)
        chosen = logits.gather(2, order[..., None, None].expand(-1, -1, -1, *logits.shape[-2:]))
        return self.mask_model.to_image(chosen, seen.height, seen.width)[0], top[0]


def _present(spatial: Tensor | None) -> Tensor:
    assert spatial is not None, "a teacher with a mask decoder has a map"
    return spatial


def _prompts(points: Coordinates | None, labels: Coordinates | None, boxes: Coordinates | None) -> dict[str, Tensor]:
    """points [P, N, 2], labels [P, N] int64 and boxes [P, 4], those that were given; UserError where they do not fit."""
    prompts: dict[str, Tensor] = {}
    if points is not None:
        prompts["points"] = _numbers("points", points, torch.float32, "[P, 2] or [P, N, 2], px of the image")
        if prompts["points"].ndim == 2:
            prompts["points"] = prompts["points"][:, None]
    if boxes is not None:
        prompts["boxes"] = _numbers("boxes", boxes, torch.float32, "[P, 4], px of the image")
    if not prompts:
        raise UserError("masks: there is no prompt; give points [P, 2], points [P, N, 2], boxes [P, 4], or points and boxes")
    if labels is not None:
        prompts["labels"] = _numbers("labels", labels, torch.int64, "[P, N], 1 or 0")
        if prompts["labels"].ndim == 1:
            prompts["labels"] = prompts["labels"][:, None]
    shapes = {name: tuple(values.shape) for name, values in prompts.items()}
    num = shapes["points"][1] if "points" in shapes and len(shapes["points"]) == 3 else 0
    count = next(iter(shapes.values()))[0] if next(iter(shapes.values())) else 0
    expected = {"points": (count, num, 2), "labels": (count, num), "boxes": (count, 4)}
    wrong = [f"{name}: found shape {shape}, expected {expected[name]}" for name, shape in shapes.items() if shape != expected[name]]
    if wrong:
        raise UserError(
            *(f"{problem} (P prompts alike, points [P, N, 2] in (x, y), boxes [P, 4]; one click is [[20, 10]])" for problem in wrong)
        )
    if "labels" in prompts and not torch.isin(prompts["labels"], torch.tensor([-1, 0, 1])).all():
        raise UserError("labels: expected 1 (the object), 0 (not the object) or -1 (no point); found another number")
    for name in prompts.keys() & {"points", "boxes"}:
        if not prompts[name].isfinite().all():
            raise UserError(f"{name}: there are values that are not finite (NaN or infinity); expected px of the image")
    if "boxes" in prompts and (prompts["boxes"][:, :2] > prompts["boxes"][:, 2:]).any():
        raise UserError("boxes: expected (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; found one the other way round")
    return prompts


def _numbers(name: str, values: Any, dtype: torch.dtype, wanted: str) -> Tensor:
    """A tensor of what was given; UserError where that is not numbers of one shape."""
    try:
        return torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{name}: expected numbers {wanted}, found {brief(values)}") from None


def _check_places(prompts: dict[str, Tensor], height: int, width: int) -> None:
    """Raises UserError where a point is not on the image, or a box (which may reach over the edge) is wholly beside it."""
    problems = []
    if "points" in prompts:
        points = prompts["points"].flatten(0, 1).cpu()
        beside = ((points < 0) | (points > points.new_tensor([width, height]))).any(1)
        if "labels" in prompts:
            beside &= prompts["labels"].flatten().cpu() >= 0  # -1: no point
        problems += _beside("points", points[beside])
    if "boxes" in prompts:
        boxes = prompts["boxes"].cpu()
        beside = (boxes[:, 2:] < 0).any(1) | (boxes[:, :2] > boxes.new_tensor([width, height])).any(1)
        problems += _beside("boxes", boxes[beside])
    if problems:
        size = f"the image has {width} x {height} px (width x height); coordinates are (x, y) in its px, x first"
        raise UserError(*(f"{problem}; {size}" for problem in problems))


def _beside(name: str, outside: Tensor) -> list[str]:
    if not len(outside):
        return []
    first = ", ".join(f"{value:g}" for value in outside[0].tolist())
    return [f"{name}: {len(outside)} of them outside the image, the first ({first})"]
