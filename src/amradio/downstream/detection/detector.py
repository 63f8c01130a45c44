"""A detector: torchvision's Faster or Mask R-CNN on a feature pyramid on a student."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from ...errors import UserError
from ...images import to_float
from ...network import Network
from .examples import Examples
from .pyramid import STRIDES, LevelPyramid, SimplePyramid, stride_of_map
from .sampling import ImageSampler, numbers_of
from .settings import AnyDetector, AttentionWindowsSettings, MaskRcnnSettings

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors (Faster R-CNN)."""
SIDE_STEP = STRIDES[-1]
"""px of which the side of a canvas is a multiple, so that every level of the pyramid has whole cells."""


class Losses(NamedTuple):
    """What the loss of a batch is made of."""

    means: dict[str, Tensor]
    """By name, float32 []: means over anchors, proposals or objects of the batch. Their sum is the loss."""
    counts: dict[str, int]
    """Of how many each of them is the mean, by which those of several processes are put together."""


class Detector(nn.Module):
    """A student, a feature pyramid, and torchvision's R-CNN heads; images are square canvases with the picture at the top left.

    The student stays in evaluation mode whatever is trained: BatchNorms keep their statistics, and nothing is drawn but the branches that
    `add_drop_path` made. Attributes: `classes`, the names of what it detects; `settings`; `image_size`, px of the canvas at which it was
    trained.
    """

    def __init__(self, network: Network, settings: AnyDetector, classes: Sequence[str], image_size: int):
        """network: its student (and the rotation of its map, where it has one) is used as it is, not copied.

        Raises UserError where the student has no levels or no windows, or takes no canvas of this size.
        """
        super().__init__()
        self.student, self.rotation = network.student, network.rotation
        self.settings, self.classes = settings, tuple(classes)
        if settings.windows is not None:
            self._set_windows(settings.windows)
        self.resize(image_size, "schedule.image_size")
        dims = dict(self.student.pyramid)
        if settings.pyramid == "levels" and not dims:
            raise UserError("detector.pyramid: the student has maps of one stride only; take simple, or auto")
        self._uses_levels = bool(dims) and settings.pyramid != "simple"
        if self._uses_levels:
            self.pyramid: nn.Module = LevelPyramid(dims, settings.channels)
        else:
            self.pyramid = SimplePyramid(self.student.spatial_dim, stride_of_map(self.student.patch_size), settings.channels)
        heads = _heads(settings, len(self.classes), len(dims) if self._uses_levels else len(STRIDES))
        self.rpn, self.roi_heads = heads.rpn, heads.roi_heads
        self.samplers = ImageSampler(settings.num_anchors, 0.5), ImageSampler(settings.num_samples, 0.25)
        self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler = self.samplers

    def _set_windows(self, windows: AttentionWindowsSettings) -> None:
        try:
            self.student.set_windows(windows.size, windows.num_global)
        except UserError as error:
            raise UserError(*(f"detector.windows: {problem}" for problem in error.problems)) from None

    def resize(self, side: int, key: str) -> None:
        """Sets the canvas to `side` px. Raises UserError, after the name of the key, where the student takes none of this size."""
        self.image_size = side
        legal = self.student.nearest_size(side, side)
        if legal != (side, side) or side % SIDE_STEP:
            sides = [n for n in range(SIDE_STEP, 4096, SIDE_STEP) if self.student.nearest_size(n, n) == (n, n)]
            near = f"; the nearest is {min(sides, key=lambda n: abs(n - side))}" if sides else "; this student takes none"
            raise UserError(f"{key}: {side} px; a multiple of {SIDE_STEP} px that the student takes is needed{near}")

    @property
    def has_masks(self) -> bool:
        """Whether it predicts masks."""
        return isinstance(self.settings, MaskRcnnSettings)

    def train(self, mode: bool = True) -> "Detector":
        """Training mode of all but the student, of which only residual branches are dropped."""
        super().train(mode)
        self.student.eval()
        for path in self.student.drop_paths:
            path.train(mode)
        return self

    def maps(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """The pyramid, float32 [B, channels, ...] by name, finest first. images: [B, 3, S, S] in [0, 1]."""
        is_frozen = not any(parameter.requires_grad for parameter in self.student.parameters())
        with torch.no_grad() if is_frozen else nullcontext():
            features = self.student.forward_pyramid(images) if self._uses_levels else self._one_map(images)
        return OrderedDict((name, level.float()) for name, level in self.pyramid(features).items())

    def _one_map(self, images: Tensor) -> Tensor:
        spatial = self.student(images).spatial
        assert spatial is not None
        if self.rotation is not None:
            spatial = self.rotation(spatial)
        cells = spatial.permute(0, 3, 1, 2)
        side = images.shape[-1] // stride_of_map(self.student.patch_size)
        return cells if cells.shape[-1] == side else F.interpolate(cells, (side, side), mode="bilinear", antialias=True)

    def forward(self, examples: Examples) -> Losses:
        """The losses of a batch: `objectness` and `rpn_box` of the proposals, `class`, `box` and (Mask R-CNN) `mask` of the detections."""
        images = self.canvas(examples.images, examples.sizes)
        if self.student.drop_paths:
            self.student.take_draws(numbers_of(examples.seeds).to(images.device))
        maps = self.maps(images)
        with torch.autocast(images.device.type, enabled=False):  # boxes of several hundred px need more than the 8 bits of bfloat16
            for sampler in self.samplers:
                sampler.seeds = examples.seeds
            targets = [
                {"boxes": boxes, "labels": labels + 1} | ({"masks": masks} if masks is not None else {})
                for boxes, labels, masks in zip(examples.boxes, examples.labels, examples.masks, strict=True)
            ]
            proposals, of_proposals = self.rpn(ImageList(images, examples.sizes), maps, targets)
            _, of_detections = self.roi_heads(maps, proposals, examples.sizes, targets)
        names = {"loss_objectness": "objectness", "loss_rpn_box_reg": "rpn_box", "loss_classifier": "class", "loss_box_reg": "box"}
        losses = {names.get(name, "mask"): loss for name, loss in (of_proposals | of_detections).items()}
        (num_anchors, _), (num_proposals, num_objects) = (sampler.num_chosen for sampler in self.samplers)
        counts = {"objectness": num_anchors, "rpn_box": num_anchors, "class": num_proposals, "box": num_proposals, "mask": num_objects}
        return Losses(losses, {name: counts[name] for name in losses})

    def canvas(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """uint8 [B, 3, S, S] -> float in [0, 1], with the student's mean colour beyond the picture of sizes[n] (height, width) px."""
        canvas = to_float(images)
        for image, (height, width) in zip(canvas, sizes, strict=True):
            image[:, height:] = image[:, :, width:] = self.student.mean
        return canvas

    @torch.inference_mode()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detections of each image of a batch: `boxes` [N, 4] (x0, y0, x1, y1) px of the canvas, `scores` [N], `labels` [N] (indices
        into `classes`), and with masks `masks` [N, 1, 28, 28], probabilities within the box. Arguments as of `canvas`; eval mode."""
        assert not self.training
        canvas = self.canvas(images, sizes)
        maps = self.maps(canvas)
        with torch.autocast(canvas.device.type, enabled=False):
            proposals, _ = self.rpn(ImageList(canvas, list(sizes)), maps)
            detected, _ = self.roi_heads(maps, proposals, list(sizes))
        return [detections | {"labels": detections["labels"] - 1} for detections in detected]

    def without_gradient(self) -> list[str]:
        """Names of the student's trained parameters that its maps do not depend on (summaries); they cannot be trained here."""
        trained = {name: parameter for name, parameter in self.student.named_parameters() if parameter.requires_grad}
        if not trained:
            return []
        side = self.image_size
        small = next((n for n in range(SIDE_STEP, side, SIDE_STEP) if self.student.nearest_size(n, n) == (n, n)), side)
        self.student.eval()
        images = torch.rand(1, 3, small, small, device=next(iter(trained.values())).device)
        features = self.student.forward_pyramid(images) if self._uses_levels else [self._one_map(images)]
        gradients = torch.autograd.grad(torch.stack([level.sum() for level in features]).sum(), list(trained.values()), allow_unused=True)
        return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


class _Channels(nn.Module):
    """What torchvision's constructors want to know of a backbone."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


def _heads(settings: AnyDetector, num_classes: int, num_levels: int) -> Any:
    """torchvision's model with `rpn` and `roi_heads`, without its backbone and its preparation of images."""
    channels, labels = settings.channels, num_classes + 1
    sizes = tuple((settings.anchor_size * 2**level,) for level in range(num_levels + 1))
    names = [str(level) for level in range(num_levels)]
    if settings.box_convs:
        box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * settings.box_convs, [settings.box_dim], LayerNorm2d)
    else:
        box_head = TwoMLPHead(channels * 49, settings.box_dim)
    common: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        "rpn_head": RPNHead(channels, len(RATIOS), settings.rpn_convs),
        "box_roi_pool": MultiScaleRoIAlign(names, 7, 2),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(settings.box_dim, labels),
        "box_detections_per_img": settings.num_detections,
    }
    for phase in ("train", "test"):
        common |= {f"rpn_pre_nms_top_n_{phase}": 2 * settings.num_proposals, f"rpn_post_nms_top_n_{phase}": settings.num_proposals}
    if not isinstance(settings, MaskRcnnSettings):
        return FasterRCNN(_Channels(channels), **common)
    dim = settings.mask_dim
    common |= {
        "mask_roi_pool": MultiScaleRoIAlign(names, 14, 2),
        "mask_head": MaskRCNNHeads(channels, [dim] * settings.mask_convs, 1),
        "mask_predictor": MaskRCNNPredictor(dim, dim, labels),
    }
    return MaskRCNN(_Channels(channels), **common)
