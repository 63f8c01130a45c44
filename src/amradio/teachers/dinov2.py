"""DINOv2 as in transformers (`Dinov2Model`, `Dinov2WithRegistersModel`)."""

from typing import Any, Literal

from torch import Tensor

from ..config import Pixels
from ..features import Features
from .adapter import Adapter, Origin
from .base import Precision, TeacherSettings, to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Dinov2Settings(TeacherSettings):
    """DINOv2, with and without registers. Summary: the class token; map: the patch tokens; both after the final norm."""

    type: Literal["dinov2"] = "dinov2"
    model: str
    """Hub name (facebook/dinov2-with-registers-large) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of a fixed square input; by default any multiple of the patch is legal."""

    def build(self) -> "Dinov2Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        source = Source(self.type, self.model, self.revision)
        classes = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
        model, folder = load_transformers(source, classes)
        check_override(source, self.input_size, model.config.patch_size)
        published = {"size": {"shortest_edge": 256}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
        preprocess = of_processor(load_processor(folder, "BitImageProcessor", **published))
        origin = Origin(self.model, licence_of(self.model, folder))
        return Dinov2Teacher(model, preprocess, self.input_size, origin, self.precision)


class Dinov2Teacher(Adapter):
    """summary [B, hidden_size]; spatial [B, H, W, hidden_size]; registers dropped."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int | None, origin: Origin, precision: Precision):
        """model: a Dinov2Model or Dinov2WithRegistersModel, which interpolates its positions; input_size: see `Adapter`."""
        config = model.config
        super().__init__(
            model,
            preprocess,
            patch_size=config.patch_size,
            dims=(config.hidden_size, config.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.num_prefix = 1 + (config.num_register_tokens if config.model_type == "dinov2_with_registers" else 0)

    def encode(self, images: Tensor) -> Features:
        """See `Teacher.encode`."""
        tokens = self.model(images).last_hidden_state
        return Features(tokens[:, 0], to_grid(tokens[:, self.num_prefix :], images, self.patch_size))
