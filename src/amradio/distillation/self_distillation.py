"""SE-MESA (C-RADIOv4): the student's map is compared with that of its moving average on a crop that is shifted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..network import Network
from ..students.base import Student
from ..students.draws import derived

SHIFTS = (1_000_001, 1_000_002)
"""Numbers of the draws of the shifts down and to the right; those of residual branches count from 0."""


class SelfDistillation:
    """The mean squared difference of both maps over the cells that both crops show, each cell layer-normalised without scale and shift.

    The average is held, not owned: it is in no state dict of the task.
    """

    def __init__(self, average: Network, weight: float, max_shift: int):
        """average: of the network that is trained. max_shift: in steps of the student."""
        self.average, self.weight, self.max_shift = average, weight, max_shift

    def __call__(self, spatial: Tensor, images: Tensor, draws: Tensor) -> Tensor:
        """The loss, float32 []. spatial: [B, h, w, D], the student's map of images [B, 3, H, W]; draws: [B, 8] of a training step."""
        student = self.average.student
        step = step_of(student, (images.shape[2], images.shape[3]), self.max_shift)
        down, right = ((derived(draws, number) * (self.max_shift + 1)).long() for number in SHIFTS)
        size = images.shape[2] - self.max_shift * step, images.shape[3] - self.max_shift * step
        seen = _crops(images.permute(0, 2, 3, 1), down * step, right * step, size).permute(0, 3, 1, 2)
        with torch.no_grad():
            target = self.average(seen)["backbone"].spatial
        cells = step // student.patch_size
        common = _crops(spatial, down * cells, right * cells, (target.shape[1], target.shape[2]))
        with torch.autocast(images.device.type, enabled=False):
            width = (spatial.shape[-1],)
            return F.mse_loss(F.layer_norm(common.float(), width), F.layer_norm(target.float(), width))


def step_of(student: Student, size: tuple[int, int], max_shift: int) -> int:
    """px of a step by which crops are shifted: the smallest by which a view can be smaller and still be of a legal size.

    size: (height, width) px of the view.

    Raises UserError where no size is legal that is smaller by `max_shift` steps.
    """
    patch, (height, width) = student.patch_size, size
    for step in range(patch, min(size), patch):
        if student.nearest_size(height - step, width - step) == (height - step, width - step):
            smaller = height - max_shift * step, width - max_shift * step
            if min(smaller) > 0 and student.nearest_size(*smaller) == smaller:
                return step
            break
    raise UserError(f"of {height}x{width} px no crop that is smaller by a shift is legal; take larger images, a smaller max_shift, or none")


def _crops(maps: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W, D] -> [B, *size, D], of each image its own window. top, left: int64 [B]."""
    rows = top[:, None] + torch.arange(size[0], device=maps.device)
    columns = left[:, None] + torch.arange(size[1], device=maps.device)
    images = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps[images, rows[:, :, None], columns[:, None, :]]
