"""Segment Anything as in transformers (`SamModel`): the encoder as a teacher, its mask decoder for evaluation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import Features, resize_grid
from ..images import to_float
from .adapter import Adapter, Origin
from .catalogue import licence_of
from .loading import Source, load_processor, load_transformers
from .precision import cast
from .preprocess import Preprocess, of_processor
from .relative_positions import remember_relative_positions
from .settings import Precision, SamSettings

NUM_MASKS = 3


def build(settings: SamSettings) -> "SamTeacher":
    """Loads the SamModel of `settings`; raises UserError where it is not there or damaged."""
    model, folder = load_transformers(Source(settings.type, settings.model, settings.revision), {"sam": "SamModel"})
    size = model.config.vision_config.image_size
    published = {"size": {"longest_edge": size}, "pad_size": {"height": size, "width": size}}
    preprocess = of_processor(load_processor(folder, "SamImageProcessor", **published))
    return SamTeacher(model, preprocess, Origin(settings.model, licence_of(settings.model, folder)), settings.precision)


class SamTeacher(Adapter):
    """spatial [B, H, W, hidden_size], before the neck (as AM-RADIO's teachers); no summary.

    `neck` and `model` (prompt encoder and mask decoder) stay in float32 for `masks`, which reads the teacher's own map or a student's.
    """

    def __init__(self, model: Any, preprocess: Preprocess, origin: Origin, precision: Precision):
        """model: a SamModel; its neck is taken out of the encoder and kept beside it."""
        vision: Any = model.config.vision_config
        neck, model.vision_encoder.neck = model.vision_encoder.neck, nn.Identity()
        remember_relative_positions(model.vision_encoder)
        super().__init__(
            model,
            preprocess,
            patch_size=vision.patch_size,
            dims=(None, vision.hidden_size),
            input_size=vision.image_size,
            origin=origin,
            precision="float32",
        )
        self.compute_dtype = cast(model.vision_encoder, precision)
        self.neck = neck
        self.freeze()

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        No summary, and the map [B, H, W, hidden_size] before the neck.
        """
        return Features(None, self.model.vision_encoder(images).last_hidden_state)

    @property
    def mask_decoder(self) -> "SamTeacher":
        """This teacher: it has SAM's prompt encoder and mask decoder."""
        return self

    @property
    def num_masks(self) -> int:
        """3: the whole, a part, a part of it (arXiv 2304.02643, section 3)."""
        return NUM_MASKS

    def prepare_image(self, image: Tensor) -> Tensor:
        """[3, H, W], float in [0, 1] or uint8 -> float [1, 3, S, S] in [0, 1], as SAM sees it: long side to S px, padded.

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

        spatial: [B, H, W, hidden_size], from `forward` or from a student's head on any grid (resized to this model's own).
        points: [B, P, N, 2], N clicks (x, y) for each of P masks, px of the square input (see `scale_prompts`).
        labels: [B, P, N], 1 on the object, 0 off it; 1 by default. boxes: [B, P, 4] (x0, y0, x1, y1). Points, boxes or both.
        Returns logits [B, P, M, h, w] (an object where > 0; h = w = a quarter of the input px) and predicted IoU [B, P, M], float32;
        M is 3 with `multimask`, else 1. Asserts that there is a prompt.
        """
        assert points is not None or boxes is not None, "masks need points or boxes"
        side = self.model.config.vision_config.image_size // self.patch_size
        embeddings = self.neck(resize_grid(spatial.float(), (side, side)))
        outputs = self.model(
            image_embeddings=embeddings, input_points=points, input_labels=labels, input_boxes=boxes, multimask_output=multimask
        )
        return outputs.pred_masks, outputs.iou_scores

    def scale_prompts(self, coordinates: Tensor, height: int, width: int) -> Tensor:
        """Points [..., 2] or boxes [..., 4] in px of an image of height x width -> px of the input that `prepare` makes of it."""
        new_height, new_width = self.preprocess.resized(height, width)
        pair = coordinates.new_tensor([new_width / width, new_height / height])
        return coordinates * pair.repeat(coordinates.shape[-1] // 2)

    def to_image(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Logits [B, P, M, h, w] of a prepared image -> [B, P, M, height, width], on the image before `prepare`."""
        side = self.model.config.vision_config.image_size
        new_height, new_width = self.preprocess.resized(height, width)
        full = F.interpolate(logits.flatten(0, 1), (side, side), mode="bilinear", align_corners=False)
        valid = full[..., :new_height, :new_width]
        return F.interpolate(valid, (height, width), mode="bilinear", align_corners=False).unflatten(0, logits.shape[:2])
