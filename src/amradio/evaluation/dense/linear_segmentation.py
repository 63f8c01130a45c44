"""Linear segmentation: how much of the semantics a linear probe reads off the frozen map."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from ...config import Pixels, Seed, Settings, one_of
from ...errors import UserError
from ...images import resize
from ...labelled.segmentation import AnyMaps, LabelledMaps, SceneMapsSettings
from ..base import Bench, Evaluation, EvaluationSettings, Framing, Predict, Result, Sizes
from ..predictors import Predictor
from ..tiling import starts
from .augmentation import AugmentedSchedule, ShortSchedule
from .mean_iou import Priors, upsample
from .probe import Crops, augmented, fit, segmentation, unaugmented
from .scoring import score


class WholeInference(Settings):
    """The whole image at once."""

    type: Literal["whole"] = "whole"


class SlideInference(Settings):
    """Overlapping square windows; where they overlap, logits are averaged."""

    type: Literal["slide"] = "slide"
    window: Pixels = 512
    """px of a window, and of the short side to which the image is resized first (never cropped)."""
    stride: Pixels = 341
    """px from one window to the next; two thirds of the window in the paper."""
    resize: bool = True
    """Whether the image is resized; else windows are cut out of it as it is."""

    @pydantic.model_validator(mode="after")
    def _overlaps(self) -> "SlideInference":
        if self.stride > self.window:
            raise ValueError(f"stride: {self.stride} px are more than a window of {self.window} px; pixels would be left out")
        return self


if TYPE_CHECKING:
    AnySchedule = AugmentedSchedule | ShortSchedule
    AnyInference = WholeInference | SlideInference
else:
    AnySchedule = one_of((AugmentedSchedule, ShortSchedule))
    AnyInference = one_of((WholeInference, SlideInference))


class LinearSegmentationSettings(EvaluationSettings):
    """BatchNorm and a 1x1 convolution on frozen maps, trained on `train`, mean IoU on `test` (AM-RADIO, section 4)."""

    view: ClassVar[Framing] = "whole"

    type: Literal["linear_segmentation"] = "linear_segmentation"
    train: AnyMaps
    """Labelled images for the probe."""
    test: AnyMaps
    """Labelled images for the score."""
    schedule: AnySchedule = AugmentedSchedule()
    """published: 80,000 steps with augmentation. short: for small sets and a quick look."""
    inference: AnyInference = WholeInference()
    """whole or slide."""
    seed: Seed = 0
    """Of the probe's weights, the order and the views."""

    def protocol_sizes(self, bench: Bench) -> Sizes:  # noqa: ARG002 - see the base
        """The published schedule is for views of its crop size, 512 px (a patch of 14 px makes that 518); scenes have their own few px."""
        if isinstance(self.schedule, ShortSchedule) or isinstance(self.train, SceneMapsSettings):
            return None
        return self.schedule.augmentation.crop_size

    def build(self) -> "LinearSegmentation":
        """Opens both sets; raises UserError where files are missing or damaged, or where the classes of the two differ."""
        train, test = self.train.build(), self.test.build()
        if list(train.names) != list(test.names):
            raise UserError(
                f"linear_segmentation: the classes of train ({len(train.names)}: {', '.join(train.names[:5])} ...) are not those of test "
                f"({len(test.names)}: {', '.join(test.names[:5])} ...); both must have the same, in the same order"
            )
        return LinearSegmentation(train, test, self.schedule, self.inference, self.seed)


class LinearSegmentation(Evaluation):
    """Mean IoU of a linear probe on frozen maps: the evaluation `linear_segmentation`."""

    is_shared = True

    def __init__(
        self,
        train: LabelledMaps,
        test: LabelledMaps,
        schedule: AugmentedSchedule | ShortSchedule,
        inference: WholeInference | SlideInference,
        seed: int = 0,
    ):
        self.train, self.test, self.schedule, self.inference, self.seed = train, test, schedule, inference, seed

    def run(self, predict: Predict, bench: Bench) -> Result:
        """`mean_iou`, `accuracy`, `class_accuracy`, in %, for every model that has a map; details: the IoU of each class.

        Floors: the most frequent class, overall and at each place. Raises UserError where no model has a map.
        """
        predict = with_maps(predict, bench.device)
        if isinstance(self.schedule, AugmentedSchedule):
            crops = Crops(self.train, self.schedule, self.seed)
            batches = augmented(crops.view, self.schedule.steps, self.schedule.batch_size, predict, bench)
        else:
            batches = unaugmented(self.train, predict, self.schedule, self.seed, bench)
        probes = fit(batches, segmentation(self.schedule, len(self.train.names), self.seed))
        result = score(self.test, lambda images: segment(predict, probes, images, self.inference), bench, Priors(self.train))
        return replace(result, counts={"training_images": len(self.train)} | dict(result.counts))


def with_maps(predict: Predict, device: torch.device, where: str = "segmentation") -> Predict:
    """The models that have a map, found with a grey image. Raises UserError where none has; where: what needs one."""
    probe = torch.full((1, 3, 64, 64), 0.5, device=device)
    able = {name: call for name, call in predict.items() if call(probe).spatial is not None}
    for call in predict.values():
        if isinstance(call, Predictor):
            call.joint.recorded.sizes.clear()  # the grey image is not part of the measurement
    if not able:
        raise UserError(f"{where}: none of {', '.join(predict) or 'the models'} has a map; name a model that has one")
    return able


@torch.no_grad()
def segment(
    predict: Predict, probes: Mapping[str, nn.Module], images: Tensor, inference: WholeInference | SlideInference
) -> dict[str, Tensor]:
    """Float images [B, 3, H, W] in [0, 1] -> {model: logits [B, K, h, w]}, covering the image from edge to edge."""
    if isinstance(inference, WholeInference):
        return _logits(predict, probes, images)
    if inference.resize:
        scale = inference.window / min(images.shape[-2:])
        images = resize(images, (round(images.shape[-2] * scale), round(images.shape[-1] * scale)), "bilinear")
    return slide(lambda window: _logits(predict, probes, window), images, inference.window, inference.stride)


def _logits(predict: Predict, probes: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    logits: dict[str, Tensor] = {}
    for name, call in predict.items():
        spatial = call(images).spatial
        assert spatial is not None
        logits[name] = torch.stack(probes[name](list(spatial.float())))
    return logits


def slide(logits_of: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor, window: int, stride: int) -> dict[str, Tensor]:
    """The mean of the logits [B, K, H, W] of all windows that cover a pixel of images [B, 3, H, W].

    Windows are `window` px (less where the image is smaller), `stride` px apart; the last ones end at the edge.
    """
    height, width = images.shape[-2:]
    sums: dict[str, Tensor] = {}
    covered = images.new_zeros(1, 1, height, width)
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            rows, columns = slice(top, min(top + window, height)), slice(left, min(left + window, width))
            view = images[..., rows, columns].contiguous()
            covered[..., rows, columns] += 1
            for name, logits in logits_of(view).items():
                if name not in sums:
                    sums[name] = logits.new_zeros(len(images), logits.shape[1], height, width)
                sums[name][..., rows, columns] += upsample(logits, (view.shape[-2], view.shape[-1]))
    return {name: total / covered for name, total in sums.items()}
