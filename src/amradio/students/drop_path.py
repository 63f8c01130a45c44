"""Stochastic depth (Huang et al., arXiv 1603.09382): residual branches that single samples go without in training."""

from torch import Tensor, nn

from ..errors import UserError
from .base import Student
from .draws import derived

NAMES = ("drop_path", "drop_path1", "drop_path2")
"""Names of modules at the end of residual branches, in timm's backbones and here."""


class DropPath(nn.Module):
    """Drops what comes in for single samples with probability `rate`, and scales the rest by 1 / (1 - rate); nothing in evaluation."""

    def __init__(self, rate: float, number: int):
        """number: of the branch, which chooses the random number of each sample."""
        super().__init__()
        self.rate, self.number = rate, number
        self.draws: Tensor | None = None
        """[B, 8] of the batch that is seen; None drops nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """[B * n, ...] -> the same; n consecutive rows belong to one sample (its windows)."""
        if not self.training or self.draws is None or not self.rate:
            return x
        kept = (derived(self.draws, self.number) >= self.rate).to(x.dtype) / (1 - self.rate)
        rows = kept.repeat_interleave(x.shape[0] // len(kept))
        return x * rows.reshape(-1, *[1] * (x.ndim - 1))


def add_drop_path(student: Student, rate: float) -> None:
    """Drops branches of a student in place, from probability 0 at its first block to `rate` at its last.

    Raises UserError where none of its branches is known.
    """
    names = [name for name, _ in student.named_modules() if name.rpartition(".")[2] in NAMES]
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if not names:
        raise UserError("the student has no residual branches that are known; leave it out")
    paths = []
    for number, name in enumerate(names):
        block, _, last = name.rpartition(".")
        share = blocks.index(block) / max(len(blocks) - 1, 1)
        path = DropPath(rate * share, number)
        setattr(student.get_submodule(block), last, path)
        paths.append(path)
    student.drop_paths = tuple(paths)
