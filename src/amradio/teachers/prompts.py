"""What SAM and its successors share as makers of masks: how an image becomes their square, and prompts go along."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import resize_grid
from ..images import to_float
from .adapter import Adapter, Origin
from .precision import cast
from .preprocess import Preprocess
from .settings import Precision

NUM_MASKS = 3


class PromptableTeacher(Adapter):
    """An encoder of square images with a prompt encoder and a mask decoder beside it; subclasses add `embeddings`."""

    takes_prompts: bool = True
    """Whether what the decoder needs was loaded and is in the map."""

    @property
    def mask_decoder(self) -> Self | None:
        """This teacher, where it takes clicks and boxes: it has the prompt encoder and the mask decoder itself."""
        return self if self.takes_prompts else None

    @property
    def num_masks(self) -> int:
        """3: the whole, a part, a part of it (arXiv 2304.02643, section 3)."""
        return NUM_MASKS

    @property
    def side(self) -> int:
        """px of the square input."""
        assert self.input_size is not None
        return self.input_size

    def prepare_image(self, image: Tensor) -> Tensor:
        """[3, H, W], float in [0, 1] or uint8 -> float [1, 3, S, S] in [0, 1], as the original processor makes it.

        uint8 is resized on integers and on the CPU, as the processor does; floats come out a level away at every tenth pixel.
        """
        pixels = image[None]
        if image.dtype == torch.uint8:
            size = self.preprocess.resized(*image.shape[-2:])
            if image.shape[-2:] != size:
                pixels = F.interpolate(pixels.cpu(), size, mode=self.preprocess.mode, antialias=True, align_corners=False)
            pixels = to_float(pixels.to(self.mean.device))
        return self.prepare(pixels.to(self.mean.device))

    def drop_encoder(self) -> None:
        """Frees the image encoder; the neck, the prompt encoder and the mask decoder stay."""
        self.model.vision_encoder = nn.Identity()

    @torch.no_grad()
    def masks(
        self,
        spatial: Tensor,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Masks for prompts, from features before the neck.

        spatial: [B, H, W, D], from `forward` or from a student's head on any grid (resized to this model's own).
        points: [B, P, N, 2], N clicks (x, y) for each of P masks, px of the square input (see `scale_prompts`).
        labels: [B, P, N], 1 on the object, 0 off it; 1 by default. boxes: [B, P, 4] (x0, y0, x1, y1). Points, boxes or both.
        Returns logits [B, P, M, h, w] (an object where > 0; h = w = four for each cell of a side of the map) and predicted IoU [B, P, M],
        float32; M is 3 with `multimask`, else 1. Asserts that there is a prompt.
        """
        assert points is not None or boxes is not None, "masks need points or boxes"
        side = self.side // self.patch_size
        outputs = self.model(
            image_embeddings=self.embeddings(resize_grid(spatial.float(), (side, side))),
            input_points=points,
            input_labels=labels,
            input_boxes=boxes,
            multimask_output=multimask,
        )
        return outputs.pred_masks, outputs.iou_scores

    def embeddings(self, spatial: Tensor) -> Tensor | list[Tensor]:
        """What the mask decoder reads of a map [B, S, S, D] on the teacher's grid: one map [B, C, S, S], or several, the finest first."""
        raise NotImplementedError

    def scale_prompts(self, coordinates: Tensor, height: int, width: int) -> Tensor:
        """Points [..., 2] or boxes [..., 4] in px of an image of height x width -> px of the input that `prepare` makes of it."""
        new_height, new_width = self.preprocess.resized(height, width)
        pair = coordinates.new_tensor([new_width / width, new_height / height])
        return coordinates * pair.repeat(coordinates.shape[-1] // 2)

    def to_image(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Logits [B, P, M, h, w] of a prepared image -> [B, P, M, height, width], on the image before `prepare`."""
        return F.interpolate(logits.flatten(0, 1), (height, width), mode="bilinear", align_corners=False).unflatten(0, logits.shape[:2])


class MultiscaleTeacher(PromptableTeacher):
    """SAM 2 and SAM 3: a decoder that also reads the neck's maps of 4 and 8 px; neck and decoder stay in float32. No summary.

    Subclasses implement `encode` and `levels`.
    """

    def __init__(
        self, model: Any, preprocess: Preprocess, *, patch_size: int, dim: int, input_size: int, origin: Origin, precision: Precision
    ):
        """model: a Sam2Model, Sam3TrackerModel or Sam3Model, whose neck is taken out of its encoder; dim: channels of the map."""
        encoder = model.vision_encoder
        neck = encoder.neck
        model.vision_encoder = encoder.backbone
        super().__init__(
            model,
            preprocess,
            patch_size=patch_size,
            dims=(None, dim),
            input_size=input_size,
            origin=origin,
            precision="float32",
        )
        self.compute_dtype = cast(model.vision_encoder, precision)
        self.neck = neck
        self.freeze()

    def levels(self, spatial: Tensor) -> list[Tensor]:
        """The neck's maps [B, C, h, w] of a map [B, S, S, D] on the teacher's own grid, the finest first."""
        raise NotImplementedError

    def embeddings(self, spatial: Tensor) -> list[Tensor]:
        """The neck's maps as the decoder takes them, [B, C, h, w] of 4 and 8 px and of the map's cells, the finest first."""
        fine, middle, coarse = self.levels(spatial)
        decoder = self.model.mask_decoder
        return [decoder.conv_s0(fine), decoder.conv_s1(middle), coarse + self.model.no_memory_embedding.view(1, -1, 1, 1)]
