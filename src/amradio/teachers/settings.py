"""The settings under `teachers.NAME` of a recipe. Reading them needs no torch: models are imported when they are built."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

import pydantic

from ..config import Pixels, Settings, UserPath, Weight
from ..errors import UserError

if TYPE_CHECKING:
    import torch

    from ..features import Kind
    from .base import Teacher

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class TeacherSettings(Settings):
    """What is common to all teachers; each kind adds its own keys and `build`."""

    if TYPE_CHECKING:
        type: str
        """Name of the kind: a literal in each."""

    summary_weight: Weight = 1.0
    """Weight of the summary loss; 0 where the summary is not to be learnt."""
    spatial_weight: Weight = 1.0
    """Weight of the spatial loss; 0 where the map is not to be learnt."""
    precision: Precision = "auto"
    """Weights of the frozen model; norms always stay in float32. auto: as the models beside it, `engine.precision` in a run."""

    def weight(self, kind: "Kind") -> float:
        """Weight of the loss of one kind of feature."""
        return self.summary_weight if kind == "summary" else self.spatial_weight

    def at(self, autocast: "torch.dtype | None") -> Self:
        """These settings with the precision `auto` replaced by that of the models beside the teacher: `autocast`, or float32 for None."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": str(autocast or "float32").removeprefix("torch.")})

    @classmethod
    def keys_of_source(cls, source: str) -> dict[str, Any]:
        """The keys under which the teacher is loaded again, from its `Teacher.source`, which is all that a model folder stores of it."""
        return {"model": source} if "model" in cls.model_fields else {}

    def build(self) -> "Teacher":
        """Loads the frozen teacher on the CPU; raises UserError where it is not on this machine and cannot be fetched."""
        raise NotImplementedError


def read_with(build: Callable[[Any], "Teacher"], settings: Any) -> "Teacher":
    """What `build` returns; whatever a library raises about the files that the settings name becomes one UserError."""
    from .loading import Source, reading

    with reading(Source(settings.type, settings.model, settings.revision), settings.model):
        return build(settings)


class ClipSettings(TeacherSettings):
    """CLIP. Summary: the image embedding of text space; map: the last patch tokens, without the final norm."""

    type: Literal["clip"] = "clip"
    model: str
    """Hub name (openai/clip-vit-large-patch14-336) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; the model's own by default, else the position embedding is interpolated."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .clip import build

        return read_with(build, self)


class OpenClipSettings(TeacherSettings):
    """OpenCLIP. Summary: the image embedding of text space; map: the patch tokens that the library gives (`output_tokens`)."""

    type: Literal["open_clip"] = "open_clip"
    model: str
    """Name in OpenCLIP (ViT-H-14), name on the hub (hf-hub:owner/name) or local folder with open_clip_config.json (local-dir:path)."""
    pretrained: str | None = None
    """Tag of the weights (laion2b_s32b_b79k) or path of a checkpoint, for a name in OpenCLIP; hub names and folders have their own."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; the model's own by default, else the position embedding is resampled."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .open_clip import build

        return build(self)

    @classmethod
    def keys_of_source(cls, source: str) -> dict[str, Any]:
        """`ViT-H-14 laion2b_s32b_b79k` is a name and a tag."""
        model, _, pretrained = source.partition(" ")
        return {"model": model} | ({"pretrained": pretrained} if pretrained else {})


class SiglipSettings(TeacherSettings):
    """SigLIP, SigLIP 2 and SigLIP 2 NaFlex. Summary: the attention-pooled embedding of text space; map: the tokens after the final norm."""

    type: Literal["siglip"] = "siglip"
    model: str
    """Hub name (google/siglip2-so400m-patch16-384) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; by default the model's own, for NaFlex any multiple of the patch; positions are interpolated."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .siglip import build

        return read_with(build, self)


class Dinov2Settings(TeacherSettings):
    """DINOv2, with and without registers. Summary: the class token; map: the patch tokens; both after the final norm."""

    type: Literal["dinov2"] = "dinov2"
    model: str
    """Hub name (facebook/dinov2-with-registers-large) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .dinov2 import build

        return read_with(build, self)


class Dinov3Settings(TeacherSettings):
    """DINOv3, ViT and ConvNeXt. Summary: the class token (ConvNeXt: the mean); map: the tokens; both after the final norm."""

    type: Literal["dinov3"] = "dinov3"
    model: str
    """Hub name (facebook/dinov3-vitl16-pretrain-lvd1689m; its owner asks for consent) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .dinov3 import build

        return read_with(build, self)


class Metaclip2Settings(TeacherSettings):
    """MetaCLIP 2, for texts in many languages. Summary: the image embedding of text space; map: the patch tokens, without the norm."""

    type: Literal["metaclip_2"] = "metaclip_2"
    model: str
    """Hub name (facebook/metaclip-2-worldwide-huge-quickgelu) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; the model's own by default, else the position embedding is interpolated."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .metaclip_2 import build

        return read_with(build, self)


class PeSettings(TeacherSettings):
    """Perception Encoder, core (OpenCLIP: with text; timm: without), lang and spatial (timm). Map: the last tokens.

    Summary: the image embedding of text space (OpenCLIP), or the pooled feature before the projection (timm).
    """

    type: Literal["pe"] = "pe"
    model: str
    """PE-Core-L-14-336 (OpenCLIP), vit_pe_lang_large_patch14_448.fb (timm), name on the hub or local folder of one of the two libraries."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; the model's own by default, else the position embedding is resampled."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .pe import build

        return build(self)


class Aimv2Settings(TeacherSettings):
    """AIMv2. Summary: the image embedding of text space (`lit`), else the mean token; map: the tokens after the final norm."""

    type: Literal["aimv2"] = "aimv2"
    model: str
    """Hub name (apple/aimv2-large-patch14-224-lit) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`. Its input size is fixed, but `native` models take any multiple of the patch."""
        from .aimv2 import build

        return read_with(build, self)


class DepthAnythingSettings(TeacherSettings):
    """The encoder of Depth Anything (1 and 2). No summary, as its depth head reads patches only; map: the tokens after the final norm."""

    type: Literal["depth_anything"] = "depth_anything"
    model: str
    """Hub name (depth-anything/Depth-Anything-V2-Large-hf) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .depth_anything import build

        return read_with(build, self)


class InternvlSettings(TeacherSettings):
    """The vision tower of InternVL (InternViT). Summary: the mean patch token (or the class token, as its config says); map: the tokens."""

    type: Literal["internvl"] = "internvl"
    model: str
    """Hub name (OpenGVLab/InternVL3-1B-hf) or local folder in the format of transformers; of a whole InternVL only the tower is loaded."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; the model's own by default, else the position embedding is interpolated."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .internvl import build

        return read_with(build, self)


class RadioSettings(TeacherSettings):
    """RADIO's backbone. Summary: its summary tokens, one after another; map: the patch tokens; there is no final norm."""

    type: Literal["radio"] = "radio"
    model: str
    """Hub name or local folder whose config.json says model_type radio."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .radio import build

        return read_with(build, self)


class TimmSettings(TeacherSettings):
    """A backbone of timm. Summary: the pooled features before the classifier; map: the last stage (ViT: patch tokens after the norm)."""

    type: Literal["timm"] = "timm"
    model: str
    """Name in timm (vit_base_patch16_224.augreg_in21k), name on the hub (timm/...) or local folder in timm's hub format."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; by default the model's own where it has a fixed one, else any multiple of the stride is legal."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`. A name that timm does not have is answered with the nearest ones."""
        from .timm import build

        return build(self)


class EmbeddedSettings(TeacherSettings):
    """A small model shipped in the package: no network, no GPU needed. All but photos know generated scenes alone."""

    type: Literal["embedded"] = "embedded"
    name: Literal["clip", "dino", "sam", "photos"]
    """clip: captions; dino: self-distilled map; sam: prompted masks; photos: the backbone of `embedded/photos`, a student of a network that
    knows photographs."""

    def build(self) -> "Teacher":
        """Loads the model from the package; raises UserError where the installation lacks its files."""
        from .embedded_teachers import build

        return build(self)

    @classmethod
    def keys_of_source(cls, source: str) -> dict[str, Any]:
        """`embedded clip` is the name after the word."""
        return {"name": source.removeprefix("embedded ")}


class ModelSettings(TeacherSettings):
    """A student that was distilled before, read from its model folder."""

    type: Literal["model"] = "model"
    path: UserPath
    """The model folder (RUN/model)."""
    head: str | None = None
    """The head to learn from; null learns from the backbone."""
    input_size: Pixels | None = None
    """px at which it sees the images; null takes the nearest legal size to the student's."""

    def build(self) -> "Teacher":
        """Raises UserError where the folder is not a whole model folder or has no such head."""
        from .model import build

        return build(self)

    @classmethod
    def keys_of_source(cls, source: str) -> dict[str, Any]:
        """A folder."""
        return {"path": source}


class LabelsSettings(TeacherSettings):
    """The classes of labelled images, one folder each, in a teacher's place: what the same student learns without distillation."""

    type: Literal["labels"] = "labels"
    path: UserPath
    """A folder with one folder a class; the images of `data.train` and `data.val` are known by the folder of this name in their path."""

    def build(self) -> "Teacher":
        """Raises UserError where the folder is not there or holds fewer than two classes."""
        from .labels import build

        return build(self)

    @classmethod
    def keys_of_source(cls, source: str) -> dict[str, Any]:
        """A folder."""
        return {"path": source}


class CustomSettings(TeacherSettings):
    """The place of a teacher that is passed as an object: `amradio.distill(recipe, teachers={"name": teacher})`."""

    type: Literal["custom"] = "custom"

    @pydantic.model_validator(mode="after")
    def _has_its_own_precision(self) -> Self:
        if self.precision != "auto":
            raise ValueError("precision: a teacher that is passed as an object has the precision that it was given; leave this key out")
        return self

    def build(self) -> "Teacher":
        """Raises UserError: there is nothing to load."""
        raise UserError(
            "a teacher of type 'custom' is an object that only Python can pass: "
            'amradio.distill(recipe, teachers={"name": teacher}), where teacher is an amradio.teachers.Teacher'
        )
