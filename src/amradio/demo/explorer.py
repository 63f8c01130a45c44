"""What the page of `amradio demo` shows, without the page: masks, heat maps, names, similar patches, maps beside the teachers'."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..drawing.panels import Panel, as_picture, heat, mark, overlay, panel_size
from ..errors import UserError, shown
from ..image_input import Picture, one_picture
from ..images import resize, to_float
from ..model import Model
from ..model.showing import Prompts, first_able, heat_panels, panels
from ..teachers.base import Teacher
from ..teachers.mask_decoder import EncodedImage, MaskDecoder
from ..teachers.text_encoder import TextEncoder

LONGEST_SIDE = 1024
"""px to which a picture is brought for the page: SAM's own, and quick to send to a browser."""
LARGEST_SIZE = 1024
"""px of the student's view at most."""
SHARPNESS = 100.0
"""Of the softmax over texts, as in CLIP's zero-shot classifier."""


@dataclass
class Seen:
    """A picture on the page, and what was clicked in it."""

    name: str
    image: Tensor
    """float [3, H, W] in [0, 1]."""
    clicks: list[tuple[float, float]] = field(default_factory=list)
    """(x, y) in px."""
    encoded: EncodedImage | None = None
    """For masks, computed at the first click."""


class Explorer:
    """A model with its teachers and some pictures; one question is answered at a time."""

    def __init__(self, model: Model, teachers: Mapping[str, Teacher], gallery: Sequence[tuple[str, Picture]] = ()):
        """teachers: by the name of their head, on the device of the model. gallery: pictures by name, where patches are looked up."""
        self.model, self.teachers = model, teachers
        self.gallery = {name: _fitting(picture) for name, picture in gallery}
        self._lock = threading.RLock()
        self._maps: tuple[int, dict[str, Tensor]] = (0, {})

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(least, largest, step, first) px of the student's view."""
        step = self.model.patch_size
        first = max(step, min(self.model.image_size or 224, LARGEST_SIZE) // step * step)
        return min(2 * step, first), max(first, LARGEST_SIZE // step * step), step, first

    @cached_property
    def _texts(self) -> tuple[str, TextEncoder]:
        return first_able(self.model.heads, lambda head: self.model.text(head, teacher=self.teachers.get(head)), "text")

    @cached_property
    def _masks(self) -> tuple[str, MaskDecoder]:
        return first_able(self.model.heads, lambda head: self.model.masks(head, teacher=self.teachers.get(head)), "masks")

    def open(self, name: str, picture: Picture | None = None) -> Seen:
        """A picture of the gallery by its name, or another one. Raises UserError where it cannot be read."""
        if picture is None and name not in self.gallery:
            raise UserError(f"picture: there is no '{shown(name)}' on this page; drop it into the field above")
        if picture is None:
            return Seen(name, self.gallery[name])
        try:
            return Seen(name, _fitting(picture))
        except UserError as error:  # under the name that it has where it comes from, not that of the upload
            raise UserError(*(problem.replace(str(picture), shown(name)) for problem in error.problems)) from None

    def maps(self, seen: Seen, size: int) -> list[Panel]:
        """The backbone, and each head beside its teacher, in the colours of principal components (`showing.panels`)."""
        with self._lock, torch.no_grad():
            return panels(self.model, seen.image, self.teachers, Prompts(), size)

    def click(self, seen: Seen, point: tuple[float, float]) -> tuple[Image.Image, str]:
        """The picture with a mask for each click so far, and the IoU that the decoder predicts for each, in words."""
        with self._lock, torch.no_grad():
            head, decoder = self._masks
            if seen.encoded is None:
                seen.encoded = decoder.look(seen.image)
            seen.clicks.append(point)
            best = decoder(seen.encoded, points=[list(click) for click in seen.clicks])
        drawn = mark(_at_own_size(overlay(best.masks[:, 0], seen.image)), seen.clicks, (), 1.0)
        shares = best.masks[:, 0].float().mean((1, 2)).tolist()
        parts = [
            f"click {n}: predicted IoU {score:.2f}, {share:.0%} of the picture" for n, (score, share) in _numbered(best.scores, shares)
        ]
        return drawn, f"Masks by head {head}. " + "; ".join(parts)

    def heat_maps(self, seen: Seen, texts: Sequence[str], size: int) -> list[Panel]:
        """A heat map for each text, all in one range of colours."""
        with self._lock, torch.no_grad():
            head, encoder = self._texts
            maps = encoder.map(seen.image, list(texts), size)[0].float().cpu()
        return heat_panels(head, list(texts), maps, seen.image)

    def names(self, seen: Seen, texts: Sequence[str], size: int) -> dict[str, float]:
        """{text: its share in [0, 1]} of the whole picture among the texts, by a softmax over 100 times the cosines."""
        with self._lock, torch.no_grad():
            head, encoder = self._texts
            summary = self.model.features(seen.image, head, size)[head].summary
            assert summary is not None, "a head with a text encoder has a summary"
            cosines = F.normalize(summary.float(), dim=1) @ encoder(list(texts)).T
        return dict(zip(texts, (SHARPNESS * cosines[0]).softmax(0).tolist(), strict=True))

    def similar(self, seen: Seen, point: tuple[float, float], size: int) -> list[Panel]:
        """The cosine of every patch of this picture and of the gallery with the one at `point`, in one range of colours."""
        with self._lock, torch.no_grad():
            here = self._map(seen.image, size)
            height, width = seen.image.shape[-2:]
            row, column = (
                min(int(pixel * count / side), count - 1)
                for pixel, count, side in ((point[1], here.shape[0], height), (point[0], here.shape[1], width))
            )
            query = here[row, column]
            others = {name: maps for name, maps in self._gallery_maps(size).items() if name != seen.name}
            cosines = {seen.name: here @ query} | {name: maps @ query for name, maps in others.items()}
        low = min(float(values.min()) for values in cosines.values())
        drawn = [
            Panel(
                "similar",
                f"{shown(name)}: cosine up to {float(values.max()):.2f}",
                _with_best(values, seen.image if name == seen.name else self.gallery[name], low),
            )
            for name, values in cosines.items()
        ]
        best = {panel.title: float(values.max()) for panel, values in zip(drawn[1:], list(cosines.values())[1:], strict=True)}
        return [drawn[0], *sorted(drawn[1:], key=lambda panel: -best[panel.title])]

    def _gallery_maps(self, size: int) -> dict[str, Tensor]:
        if self._maps[0] != size:
            self._maps = size, {name: self._map(image, size) for name, image in self.gallery.items()}
        return self._maps[1]

    def _map(self, image: Tensor, size: int) -> Tensor:
        """[h, w, D], cells of length 1."""
        spatial = self.model.features(image, None, size).spatial
        if spatial is None:
            raise UserError("similar: this model has no map, so there are no patches to compare")
        return F.normalize(spatial[0].float().cpu(), dim=-1)


def _fitting(picture: Picture) -> Tensor:
    """float [3, H, W] with sides of at most `LONGEST_SIDE` px."""
    image = to_float(one_picture(picture)).float()
    scale = LONGEST_SIDE / max(image.shape[-2:])
    if scale >= 1:
        return image
    return resize(image[None], (max(1, round(image.shape[-2] * scale)), max(1, round(image.shape[-1] * scale))))[0]


def _at_own_size(rgb: Tensor) -> Image.Image:
    """float [H, W, 3] in [0, 1]."""
    return Image.fromarray((rgb.clamp(0, 1) * 255).round().byte().cpu().numpy())


def picture_of(seen: Seen) -> Image.Image:
    """As it is shown."""
    return _at_own_size(seen.image.permute(1, 2, 0))


def _numbered(scores: Tensor, shares: Sequence[float]) -> list[tuple[int, tuple[float, float]]]:
    return list(enumerate(zip(scores[:, 0].tolist(), shares, strict=True), 1))


def _with_best(values: Tensor, image: Tensor, low: float) -> Image.Image:
    """Cosines [h, w] over an image, a dot on the greatest."""
    height, width = image.shape[-2:]
    best = int(values.argmax())
    x, y = (best % values.shape[1] + 0.5) * width / values.shape[1], (best // values.shape[1] + 0.5) * height / values.shape[0]
    drawn = as_picture(heat(values, image, low, 1.0), height, width, smooth=True)
    return mark(drawn, [(x, y)], (), panel_size(height, width)[0] / width)
