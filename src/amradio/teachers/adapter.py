"""What the adapters over other libraries share: a wrapped model, its published preprocessing, its precision."""

from typing import Any, NamedTuple

from torch import Tensor

from ..images import resize
from .base import Teacher
from .precision import cast
from .preprocess import Preprocess
from .settings import Precision


class Origin(NamedTuple):
    """Where weights come from and under which terms."""

    source: str
    """Hub name or folder, as the user wrote it."""
    licence: str
    """Of the weights."""


class Adapter(Teacher):
    """A frozen model of another library. `model` is that library's own object."""

    def __init__(
        self,
        model: Any,
        preprocess: Preprocess,
        *,
        patch_size: int,
        dims: tuple[int | None, int | None],
        input_size: int | None,
        origin: Origin,
        precision: Precision,
    ):
        """input_size: px of the only legal square input, to which `preprocess` is fitted; None: any multiple of the patch."""
        super().__init__(
            mean=preprocess.mean,
            std=preprocess.std,
            patch_size=patch_size,
            dims=dims,
            input_size=input_size,
            licence=origin.licence,
            source=origin.source,
        )
        if input_size is not None and preprocess.output != (input_size, input_size):
            preprocess = preprocess.at(input_size)
        self.preprocess = preprocess
        self.model = model
        self.compute_dtype = cast(model, precision)
        self.freeze()

    def prepare(self, images: Tensor) -> Tensor:
        """As the original library's processor, less the normalisation: [B, 3, H, W] in [0, 1] to a legal size.

        Where what comes out of the processor is no multiple of the patch, it is resized to the nearest one.
        """
        images = self.preprocess(images)
        return resize(images, self.size_for(*images.shape[-2:]))
