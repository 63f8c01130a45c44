"""DINOv3 as in transformers (`DINOv3ViTModel`, `DINOv3ConvNextModel`)."""

from typing import Any, Literal

from torch import Tensor
from transformers import DINOv3ConvNextModel, DINOv3ViTImageProcessor, DINOv3ViTModel

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
    input_size: int | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Dinov3Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        source = Source(self.type, self.model, self.revision)
        model, folder = load_transformers(source, {"dinov3_vit": DINOv3ViTModel, "dinov3_convnext": DINOv3ConvNextModel})
        preprocess = of_processor(load_processor(folder, DINOv3ViTImageProcessor))
        teacher = Dinov3Teacher(model, preprocess, self.input_size, Origin(self.model, licence_of(self.model, folder)), self.precision)
        check_override(source, self.input_size, teacher.patch_size)
        return teacher


class Dinov3Teacher(Adapter):
    """summary [B, D]; spatial [B, H, W, D]; registers dropped."""

    def __init__(
        self,
        model: DINOv3ViTModel | DINOv3ConvNextModel,
        preprocess: Preprocess,
        input_size: int | None,
        origin: Origin,
        precision: Precision,
    ):
        """input_size: px of a fixed square input; None: any multiple of the patch (ConvNeXt: of its stride, 32)."""
        config: Any = model.config
        is_vit = isinstance(model, DINOv3ViTModel)
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
