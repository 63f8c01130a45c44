"""Settings of detection: the detector, its data, how long and how it is trained. Reading them needs no torch."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

import pydantic

from ...config import (
    AsTuple,
    Decay,
    Depth,
    Factor,
    LearningRate,
    Natural,
    Pixels,
    Positive,
    Probability,
    ReadingProcesses,
    Seed,
    Settings,
    Share,
    UserPath,
    Width,
    WindowSide,
    defaults,
    one_of,
    validate,
)
from ...engine.settings import OptimizerSettings, RunEngineSettings
from ...errors import UserError
from ...labelled.instances import AnyInstances
from ...students.settings import AllSettings, FrozenSettings, LastBlocksSettings, LoraSettings
from ...words import read_words

Backend = Literal["pycocotools", "faster_coco_eval"]
"""What computes COCO's numbers."""

if TYPE_CHECKING:
    AnyBackbone = FrozenSettings | LastBlocksSettings | LoraSettings | AllSettings
else:
    AnyBackbone = one_of((FrozenSettings, LastBlocksSettings, LoraSettings, AllSettings))


class AttentionWindowsSettings(Settings):
    """Windowed attention of a ViT in training and in use: patches see one another within windows in all but a few blocks (ViTDet)."""

    size: WindowSide = 16
    """Patches along the side of a window; it divides the side of the map (ViTDet pads for its 14)."""
    num_global: Depth = 4
    """Blocks in which all patches see one another, evenly spread, the last one among them (ViTDet: 4)."""


class DetectorSettings(Settings):
    """The layers on the student's maps: those of torchvision's R-CNN detectors, on a feature pyramid."""

    pyramid: Literal["auto", "simple", "levels"] = "auto"
    """simple: ViTDet's pyramid on the student's one map (section 3 of its paper); levels: a feature pyramid network on the maps of its
    stages, for backbones of timm and E-RADIO that have several strides; auto: levels where there are some."""
    channels: Width = 256
    """Of every level of the pyramid."""
    rpn_convs: Depth = 2
    """Convolutions of the region proposal network before its outputs (ViTDet: 2)."""
    box_convs: Annotated[int, pydantic.Field(ge=0, le=32)] = 4
    """Convolutions with LayerNorm of the box head before its linear layer (ViTDet: 4); 0 for two linear layers, which cost less."""
    box_dim: Width = 1024
    """Channels of the box head's linear layers."""
    anchor_size: Annotated[float, pydantic.Field(gt=0, le=4096)] = 32.0
    """px of the anchors of the finest level; each level doubles it. For images of few px take less."""
    num_anchors: Positive = 256
    """Anchors of an image that the loss of proposals samples."""
    num_proposals: Positive = 1000
    """Proposals of an image after non-maximum suppression; twice as many of each level come before it."""
    num_samples: Positive = 512
    """Proposals of an image that the losses of boxes and masks sample."""
    num_detections: Positive = 100
    """Detections of an image at most; COCO counts 100."""
    windows: AttentionWindowsSettings | None = None
    """Windowed attention of the student; null for that with which it comes, global attention."""


class FasterRcnnSettings(DetectorSettings):
    """Faster R-CNN: boxes and classes."""

    type: Literal["faster_rcnn"] = "faster_rcnn"


class MaskRcnnSettings(DetectorSettings):
    """Mask R-CNN: boxes, classes and a mask for each box."""

    type: Literal["mask_rcnn"] = "mask_rcnn"
    mask_convs: Depth = 4
    """Convolutions of the mask head before its up-sampling."""
    mask_dim: Width = 256
    """Their channels."""


DETECTORS: tuple[type[DetectorSettings], ...] = (FasterRcnnSettings, MaskRcnnSettings)
"""Every kind of detector."""

if TYPE_CHECKING:
    AnyDetector = FasterRcnnSettings | MaskRcnnSettings
else:
    AnyDetector = one_of(DETECTORS)


class DetectionDataSettings(Settings):
    """Images with boxes (and masks, for Mask R-CNN) for training, and others for the score."""

    train: AnyInstances
    """Objects to learn from; regions of many objects (`iscrowd`) and images without an object are left out."""
    val: AnyInstances | None = None
    """Objects to measure on, all of them; null for none."""
    num_workers: ReadingProcesses = None


class ScheduleSettings(Settings):
    """How long a detector is trained, and on what views; each type has its own defaults."""

    epochs: Annotated[float, pydantic.Field(gt=0, le=100_000)] = 12.0
    """Passes over the training images."""
    batch_size: Positive = 16
    """Images a step, over all processes together."""
    image_size: Pixels = 512
    """px of the square canvas on which each image is laid; a multiple of 32 that the student takes."""
    scale: Annotated[tuple[Factor, Factor], AsTuple] = (0.5, 1.5)
    """Large-scale jitter: the long side of the image over that of the canvas, drawn uniformly between the two; what is beyond is cut."""
    flip: Share = 0.5
    """How often an image is mirrored left to right."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: two numbers above 0, the smaller first, found {list(self.scale)}")
        return self


class ShortSettings(ScheduleSettings):
    """12 epochs at 512 px: enough to tell backbones apart."""

    type: Literal["short"] = "short"


class PublishedSettings(ScheduleSettings):
    """ViTDet's: 100 epochs of batches of 64 at 1024 px with large-scale jitter of 0.1 to 2."""

    type: Literal["published"] = "published"
    epochs: Annotated[float, pydantic.Field(gt=0, le=100_000)] = 100.0
    """Passes over the training images."""
    batch_size: Positive = 64
    """Images a step, over all processes together."""
    image_size: Pixels = 1024
    """px of the square canvas on which each image is laid; a multiple of 32 that the student takes."""
    scale: Annotated[tuple[Factor, Factor], AsTuple] = (0.1, 2.0)
    """Large-scale jitter: the long side of the image over that of the canvas, drawn uniformly between the two; what is beyond is cut."""


if TYPE_CHECKING:
    AnySchedule = ScheduleSettings
else:
    AnySchedule = one_of((ShortSettings, PublishedSettings))


class DetectionOptimizerSettings(OptimizerSettings):
    """AdamW with warm-up and cosine (or milestones), ViTDet's rate and decay by default."""

    learning_rate: LearningRate = 1e-4
    """Peak learning rate (ViTDet: 1e-4 at a batch of 64)."""
    warmup_steps: Natural = 250
    """Steps of linear warm-up, at most a tenth of the run (ViTDet: 250)."""
    weight_decay: Decay = 0.1
    """Decay of matrices (ViTDet: 0.1); norms, biases, tokens and position tables are left alone."""


class DetectionEvaluateSettings(Settings):
    """What is measured during the run: COCO's numbers on data.val."""

    every: Positive | None = None
    """Steps between evaluations, also at the end; null for the end alone."""


class DetectionRecipe(Settings):
    """The whole run of `amradio detect train`. Only model, data and out are required."""

    model: UserPath
    """The student: a run folder, or a model in any format that is read."""
    data: DetectionDataSettings
    out: UserPath
    """The run folder. The same command resumes what is there."""
    backbone: AnyBackbone = FrozenSettings()
    """Which part of the student is trained."""
    drop_path: Probability = 0.0
    """Probability that an image goes without a residual branch of the student's last block in training; it falls to 0 at the first
    (ViTDet: 0.1 for B, 0.4 for L, 0.5 for H)."""
    detector: AnyDetector = FasterRcnnSettings()
    """The detector on its maps."""
    schedule: AnySchedule = ShortSettings()
    """How long, and on what views."""
    optimizer: DetectionOptimizerSettings = DetectionOptimizerSettings()
    engine: RunEngineSettings = RunEngineSettings()
    evaluate: DetectionEvaluateSettings = DetectionEvaluateSettings()
    seed: Seed = 0
    """Of weights, views, order and every other draw."""

    @classmethod
    def load(cls, *words: str) -> "DetectionRecipe":
        """Reads a recipe from words, each a YAML file or `key=value`, merged left to right.

        Raises UserError with every problem at once, each with its key and the nearest name.
        """
        recipe = validate(cls, read_words(words, defaults(cls), "detection"))
        problems = recipe.contradictions()
        if problems:
            raise UserError(*problems)
        return recipe

    def contradictions(self) -> list[str]:
        """What keys say against one another, one sentence each."""
        problems = []
        if isinstance(self.backbone, FrozenSettings):
            optimizer = self.optimizer
            idle = {"optimizer.rates.body": optimizer.rates.body != 1, "optimizer.layer_decay": optimizer.layer_decay != 1}
            advice = "is for a backbone that is trained, and this one is frozen; leave it out, or set backbone"
            problems += [f"{key}: it {advice}" for key, is_set in (idle | {"drop_path": self.drop_path != 0}).items() if is_set]
        if self.data.val is None and self.evaluate.every is not None:
            problems.append("evaluate.every: there are no images to measure on; give data.val, or leave it out")
        return problems
