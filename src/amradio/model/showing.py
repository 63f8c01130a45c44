"""What a model knows of one picture, as panels: features beside the teachers', heat maps of texts, masks of prompts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..drawing.panels import Panel, as_picture, heat, label, mark, overlay, panel_size, principal_components, sheet
from ..errors import UserError, shown
from ..features import Features
from ..image_input import Picture, Size, one_picture, scaled_size
from ..images import resize, to_float
from ..teachers.automatic_masks import MaskFilters
from ..teachers.base import Teacher
from .embedded_set import EmbeddedSet, Embedder

NEIGHBOURS = 4
"""Images of an embedded set that are drawn."""
GRID = 8
"""Clicks along each side of an image where masks are wanted everywhere."""
DRAWN = MaskFilters(min_iou=0.6, min_stability=0.0)
"""Which masks of the grid are drawn. The logits of a student's masks are smaller than SAM's, so that few reach its stability."""
SMALLEST, LARGEST = 0.003, 0.9
"""Share of the image that a mask of the grid covers at least and at most: smaller ones are grain, larger ones the whole picture."""


class ShownModel(Embedder, Protocol):
    """What is needed of a model (`amradio.Model`)."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        ...

    @property
    def device(self) -> torch.device:
        """Where images must be."""
        ...

    def text(self, head: str, *, teacher: Any = None) -> Any:
        """The text encoder of a head; UserError where it has none."""
        ...

    def masks(self, head: str, *, teacher: Any = None) -> Any:
        """The mask decoder of a head; UserError where it has none."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What is asked beside features, all coordinates (x, y) in px of the picture."""

    texts: Sequence[str] = ()
    """One heat map each."""
    points: Sequence[tuple[float, float]] = ()
    """Clicks, each on an object of its own."""
    boxes: Sequence[tuple[float, float, float, float]] = ()
    """(x0, y0, x1, y1)."""
    everywhere: bool = False
    """Masks of a grid of clicks."""
    neighbours: EmbeddedSet | None = None
    """The images of this set that are nearest to the picture."""

    @property
    def wants_masks(self) -> bool:
        """Whether a mask decoder is needed."""
        return bool(self.points) or bool(self.boxes) or self.everywhere


def show(
    self: ShownModel,
    image: Picture,
    *,
    texts: str | Sequence[str] = (),
    points: Sequence[tuple[float, float]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
    everywhere: bool = False,
    neighbours: EmbeddedSet | None = None,
    teachers: Mapping[str, Teacher] | None = None,
) -> Image.Image:
    """What the model knows of a picture, as one picture to look at: `model.show("photo.jpg", texts=["a dog", "grass"]).save("dog.png")`.

    Colours are the three principal components of a map; a head and its teacher share them, so equal colours are equal features.

    Args:
        image: as `amradio.read_image` takes it.
        texts: a heat map for each, of a head whose teacher has a text encoder.
        points: a mask for each click (x, y), px of the picture, of a head that learnt from a SAM.
        boxes: a mask for each box (x0, y0, x1, y1), px of the picture.
        everywhere: the distinct masks of a grid of clicks.
        neighbours: a set of images that `amradio embed` embedded, of which the nearest are drawn: `EmbeddedSet.read("photos.safetensors",
            "photos")`.
        teachers: by the name of their head; each is drawn beside it.

    Raises:
        UserError: where the picture cannot be read, or no head can do what is asked for.
    """
    prompts = Prompts([texts] if isinstance(texts, str) else list(texts), list(points), list(boxes), everywhere, neighbours)
    return sheet(panels(self, to_float(one_picture(image)), teachers or {}, prompts))


@torch.no_grad()
def panels(
    model: ShownModel, image: Tensor, teachers: Mapping[str, Teacher], prompts: Prompts, size: Size | Literal["own"] = None
) -> list[Panel]:
    """All panels of a picture: itself, the backbone, each head with a map beside its teacher, and what the prompts ask for.

    Maps are drawn in the colours of their three principal components. Those of a head and of its teacher have the same components (the
    teacher's, where it is there), so equal colours are equal features; those of two heads cannot be compared.
    image: float [3, H, W] in [0, 1]. teachers: by the name of their head; they see what the student sees, stretched to a legal size.
    size: that at which the student sees it, as of `Model.features`. Raises UserError where a text or a mask is asked for and no head
    has an encoder or a decoder for it.
    """
    height, width = image.shape[-2:]
    features: dict[str, Features] = model.features(image, model.heads, size)
    seen = scaled_size(height, width, model.config.image_size if size is None else None if size == "own" else size)
    drawn = [Panel("picture", f"picture, {width} x {height} px", as_picture(image.permute(1, 2, 0), height, width, smooth=True))]
    drawn += [panel._replace(row="picture") for panel in _pair("backbone", features["backbone"].spatial, None, image)]
    for name in model.heads:
        drawn += _pair(f"head {name}", features[name].spatial, _of_teacher(teachers.get(name), image, seen, model.device), image)
    if prompts.texts:
        drawn += _heat_maps(model, image, teachers, prompts.texts, size)
    if prompts.wants_masks:
        drawn += _masks(model, image, teachers, prompts, size)
    if prompts.neighbours is not None:
        drawn += _nearest(model, image, prompts.neighbours)
    return drawn


def _nearest(model: ShownModel, image: Tensor, known: EmbeddedSet) -> Iterator[Panel]:
    """A panel for each of the nearest images of a set."""
    for number, (key, similarity) in enumerate(known.nearest(model, image, NEIGHBOURS), 1):
        picture = to_float(one_picture(known.picture(key)))
        drawn = as_picture(picture.permute(1, 2, 0), picture.shape[-2], picture.shape[-1], smooth=True)
        yield Panel("neighbours", f"neighbour {number}, {shown(key)}: cosine {similarity:.3f}", drawn)


def _of_teacher(teacher: Teacher | None, image: Tensor, seen: tuple[int, int], device: torch.device) -> Tensor | None:
    """The map [H, W, D] of the whole picture. seen: (height, width) in px at which the student has it, however large the picture is."""
    if teacher is None:
        return None
    spatial = teacher(resize(image[None], teacher.size_for(*seen)).to(device)).spatial
    return None if spatial is None else spatial[0]


def _pair(row: str, student: Tensor | None, teacher: Tensor | None, image: Tensor) -> list[Panel]:
    """The student's map [1, H, W, D], and the teacher's [H, W, D] where there is one."""
    if student is None:
        return []
    components = principal_components(student[0] if teacher is None else teacher)
    sides = [("student", student[0])] + ([("teacher", teacher)] if teacher is not None else [])
    return [
        Panel(
            row,
            f"{row}, {who}: {spatial.shape[0]} x {spatial.shape[1]} cells",
            as_picture(components.colours(spatial), image.shape[-2], image.shape[-1]),
        )
        for who, spatial in sides
    ]


def first_able(heads: Iterable[str], make: Callable[[str], Any], what: str) -> tuple[str, Any]:
    """(head, what `make` gives) of the first head for which it raises nothing; UserError with the reasons where there is none."""
    reasons: list[str] = []
    for head in heads:
        try:
            return head, make(head)
        except UserError as error:
            reasons += error.problems
    raise UserError(f"{what}: no head can do this: {'; '.join(dict.fromkeys(reasons)) or 'the model has no heads'}")


def _heat_maps(model: ShownModel, image: Tensor, teachers: Mapping[str, Teacher], texts: Sequence[str], size: Any) -> list[Panel]:
    """A panel for each text; the colours of one picture have one range, so that texts can be compared."""

    def make(head: str) -> Tensor:
        encoder = model.text(head, teacher=teachers.get(head))
        return encoder.to(model.device).map(image, list(texts), size)[0].float().cpu()

    head, maps = first_able(model.heads, make, "text")
    return heat_panels(head, texts, maps, image)


def heat_panels(head: str, texts: Sequence[str], maps: Tensor, image: Tensor) -> list[Panel]:
    """A panel for each of the texts, from their cosines [T, h, w] over an image [3, H, W] in [0, 1]."""
    low, high = float(maps.min()), float(maps.max())
    return [
        Panel(
            "text",
            f"text '{text}' by head {head}: cosine {float(values.min()):.2f} to {float(values.max()):.2f}, colours {low:.2f} to {high:.2f}",
            as_picture(heat(values, image, low, high), image.shape[-2], image.shape[-1], smooth=True),
        )
        for text, values in zip(texts, maps, strict=True)
    ]


def _masks(model: ShownModel, image: Tensor, teachers: Mapping[str, Teacher], prompts: Prompts, size: Any) -> list[Panel]:
    """A panel for clicks, boxes and the grid; with several texts each mask bears the name of the one that it fits best."""
    head, decoder = first_able(model.heads, lambda head: model.masks(head, teacher=teachers.get(head)), "masks")
    decoder = decoder.to(model.device)
    encoded = decoder.look(image)
    height, width = image.shape[-2:]
    scale = panel_size(height, width)[0] / width
    drawn: list[Panel] = []

    def panel(title: str, masks: Tensor, points: Sequence[tuple[float, float]] = (), boxes: Sequence[Sequence[float]] = ()) -> None:
        picture = mark(as_picture(overlay(masks, image), height, width, smooth=True), points, boxes, scale)
        names = _names(model, image, teachers, prompts.texts, masks, size)
        if names:
            label(picture, masks, names, scale)
        is_empty = len(masks) and not masks.any()
        remark = "; no pixel is in it" if is_empty else "; names: the text that fits best" if names else ""
        drawn.append(Panel("masks", f"{title} by head {head}{remark}", picture))

    if prompts.points:
        best = decoder(encoded, points=[list(point) for point in prompts.points])
        panel(f"{_count(prompts.points, 'click')}, predicted IoU {_scores(best.scores)}", best.masks[:, 0], prompts.points)
    if prompts.boxes:
        best = decoder(encoded, boxes=[list(box) for box in prompts.boxes])
        panel(f"{_count(prompts.boxes, 'box', 'boxes')}, predicted IoU {_scores(best.scores)}", best.masks[:, 0], (), prompts.boxes)
    if prompts.everywhere:
        masks = worth_drawing(decoder.everything(image, points_per_side=GRID, filters=DRAWN).masks)
        panel(f"{len(masks)} {'mask' if len(masks) == 1 else 'masks'} of {GRID} x {GRID} clicks everywhere", masks)
    return drawn


def _names(model: ShownModel, image: Tensor, teachers: Mapping[str, Teacher], texts: Sequence[str], masks: Tensor, size: Any) -> list[str]:
    """Of masks [N, H, W] the text that each fits best, with its cosine; none where there is nothing to choose from."""
    if len(texts) < 2 or not len(masks):
        return []

    def make(head: str) -> Tensor:
        encoder = model.text(head, teacher=teachers.get(head)).to(model.device)
        return encoder.name_masks(image, masks.to(model.device), list(texts), size)

    _, cosines = first_able(model.heads, make, "text")
    return [f"{texts[int(row.argmax())]} {float(row.max()):.2f}" for row in cosines]


def _count(prompts: Sequence[Any], one: str, several: str = "") -> str:
    return f"mask of 1 {one}" if len(prompts) == 1 else f"masks of {len(prompts)} {several or one + 's'}"


def _scores(scores: Tensor) -> str:
    return ", ".join(f"{min(score, 1):.2f}" for score in scores[:, 0].tolist())  # a decoder may predict a little more than 1


def worth_drawing(masks: Tensor) -> Tensor:
    """Of masks bool [N, H, W] those that are neither grain nor the whole image, the largest first, so that a part lies on its object."""
    share = masks.flatten(1).float().mean(1)
    order = share.argsort(descending=True, stable=True)
    return masks[order[(share[order] >= SMALLEST) & (share[order] <= LARGEST)]]
