"""DINOv3 as in transformers (`DINOv3ViTModel`, `DINOv3ConvNextModel`)."""

from typing import Any, Literal

from torch import Tensor

from ..config import Pixels
from ..features import Features
from .adapter import Adapter, Origin
from .base import Precision, TeacherSettings, to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor

CONVNEXT_STRIDE = 32
"""Four in the stem, then two in each of three stages."""


class Dinov3Settings(TeacherSettings):
    """DINOv3, ViT and ConvNeXt. Summary: the class token (ConvNeXt: the mean); map: the tokens; both after the final norm."""

    type: Literal["dinov3"] = "dinov3"
    model: str
    """Hub name (facebook/dinov3-vitl16-pretrain-lvd1689m; its owner asks for consent) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Dinov3Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        source = Source(self.type, self.model, self.revision)
        classes = {"dinov3_vit": "DINOv3ViTModel", "dinov3_convnext": "DINOv3ConvNextModel"}
        model, folder = load_transformers(source, classes)
        preprocess = of_processor(load_processor(folder, "DINOv3ViTImageProcessor"))
        teacher = Dinov3Teacher(model, preprocess, self.input_size, Origin(self.model, licence_of(self.model, folder)), self.precision)
        check_override(source, self.input_size, teacher.patch_size)
        return teacher


class Dinov3Teacher(Adapter):
    """summary [B, D]; spatial [B, H, W, D]; registers dropped."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int | None, origin: Origin, precision: Precision):
        """model: a DINOv3ViTModel or DINOv3ConvNextModel, whose patch is its stride of 32 px; input_size: see `Adapter`."""
        config = model.config
        is_vit = config.model_type == "dinov3_vit"
        dim = config.hidden_size if is_vit else config.hidden_sizes[-1]
        super().__init__(
            model,
            preprocess,
            patch_size=config.patch_size if is_vit else CONVNEXT_STRIDE,
            dims=(dim, dim),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.num_prefix = 1 + (config.num_register_tokens if is_vit else 0)

    def encode(self, images: Tensor) -> Features:
        """See `Teacher.encode`."""
        tokens = self.model(images).last_hidden_state
        return Features(tokens[:, 0], to_grid(tokens[:, self.num_prefix :], images, self.patch_size))
