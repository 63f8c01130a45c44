"""A model folder of our own as a teacher."""

from torch import Tensor

from .. import formats
from ..errors import UserError, nearest
from ..features import Features
from ..images import central_square, resize
from ..network import Network
from .base import Teacher
from .precision import cast
from .settings import ModelSettings


def build(settings: ModelSettings) -> "Teacher":
    """Reads the model folder of `settings`; raises UserError where it is damaged or has no such head."""
    config, network, *_ = formats.read(settings.path)
    if settings.head is None:
        dims = (network.summary_dim, network.spatial_dim)
    elif settings.head in config.heads:
        head = config.heads[settings.head]
        dims = (head.summary.dim if head.summary else None, head.spatial.dim if head.spatial else None)
    else:
        raise UserError(f"{settings.path}: there is no head '{settings.head}'; {nearest(settings.head, config.heads)}")
    teacher = ModelTeacher(network, settings.head, dims, settings.input_size, settings.path)
    teacher.ancestors = tuple(config.distilled_from)
    teacher.compute_dtype = cast(network, settings.precision)
    teacher.preferred_size = (config.heads[settings.head].image_size if settings.head else None) or config.image_size
    return teacher


class ModelTeacher(Teacher):
    """A frozen network of ours; its student normalises the images itself."""

    preferred_size: int | None = None
    """px at which it was trained; None where that is not known."""

    def __init__(self, network: Network, head: str | None, dims: tuple[int | None, int | None], input_size: int | None, source: str):
        """dims: channels of (summary, spatial)."""
        super().__init__(
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            patch_size=network.student.patch_size,
            dims=dims,
            input_size=input_size,
            licence="that of its teachers; see its model card",
            source=source,
        )
        self.network, self.head = network, head
        self.freeze()

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The legal size nearest to the view, or to `input_size`."""
        side = self.input_size
        return self.network.student.nearest_size(*((side, side) if side else (height, width)))

    def prepare(self, images: Tensor) -> Tensor:
        """As a student is measured in recognition: the central square, at `input_size`, else at the size at which it was trained."""
        shown = central_square(images)
        side = self.input_size or self.preferred_size or shown.shape[-1]
        return resize(shown, self.size_for(side, side))

    def encode(self, images: Tensor) -> Features:
        """Features of images [B, 3, H, W] in [0, 1] of a legal size: those of the head, or of the backbone.

        The student normalizes them itself.
        """
        return self.network(images, None, [self.head] if self.head else ())[self.head or "backbone"]
