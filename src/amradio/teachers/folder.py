"""A model folder of our own as a teacher."""

from typing import Literal

from torch import Tensor

from .. import formats
from ..config import Pixels, UserPath
from ..errors import UserError, nearest
from ..features import Features
from ..network import Network
from .base import Teacher, TeacherSettings
from .precision import cast


class ModelSettings(TeacherSettings):
    """A student that was distilled before, read from its model folder."""

    type: Literal["model"] = "model"
    path: UserPath
    """The model folder (RUN/model)."""
    head: str | None = None
    """The head to learn from; null learns from the backbone."""
    input_size: Pixels | None = None
    """px at which it sees the images; null takes the nearest legal size to the student's."""

    def build(self) -> Teacher:
        """Raises UserError where the folder is not a whole model folder or has no such head."""
        config, network, _ = formats.read(self.path)
        if self.head is None:
            dims = (network.summary_dim, network.spatial_dim)
        elif self.head in config.heads:
            head = config.heads[self.head]
            dims = (head.summary.dim if head.summary else None, head.spatial.dim if head.spatial else None)
        else:
            raise UserError(f"{self.path}: there is no head '{self.head}'; {nearest(self.head, config.heads)}")
        teacher = ModelTeacher(network, self.head, dims, self.input_size, self.path)
        teacher.compute_dtype = cast(network, self.precision)
        return teacher


class ModelTeacher(Teacher):
    """A frozen network of ours; its student normalises the images itself."""

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

    def encode(self, images: Tensor) -> Features:
        """See the base; images are in [0, 1]."""
        return self.network(images, None, [self.head] if self.head else ())[self.head or "backbone"]
