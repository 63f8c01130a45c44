"""What can stand under `student` in a recipe. Reading it needs no torch: the networks are imported when they are built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import pydantic

from ..config import Depth, Settings, Width, one_of
from ..errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from .base import Student


class StudentRow(NamedTuple):
    """One line of `amradio students`."""

    type: str
    size: str
    dim: int
    depth: int
    num_heads: int
    patch_size: int
    parameters: int
    """Of the backbone with its default settings and four summaries, position table included."""


class AllSettings(Settings):
    """The whole student."""

    type: Literal["all"] = "all"

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Changes nothing."""
        del student, blocks


class LastBlocksSettings(Settings):
    """The last blocks; what stands before them keeps its bits."""

    type: Literal["last_blocks"] = "last_blocks"
    count: Depth
    """How many blocks."""

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Freezes all but the last `count` of `blocks`; UserError where there are fewer."""
        if self.count > len(blocks):
            way_out = f"give at most {len(blocks)}" if blocks else "take train: all"
            raise UserError(f"count: the last {self.count} blocks were asked for, the student has {len(blocks) or 'no'}; {way_out}")
        student.requires_grad_(False)
        for block in blocks[-self.count :]:
            block.requires_grad_(True)


class LoraSettings(Settings):
    """Low-rank additions to the linear layers of all blocks (LoRA, Hu et al. 2021); a model folder holds them merged into the weights."""

    type: Literal["lora"] = "lora"
    rank: Width = 16
    """Columns of the two matrices whose product is added to a weight."""
    alpha: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 32.0
    """The product is scaled by alpha / rank before it is added."""

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Freezes the student and adds to each linear layer of `blocks`; UserError where there is none."""
        from .finetuning import LowRankLinear, linears, replace_module

        layers = [(block, *pair) for block in blocks for pair in linears(block)]
        if not layers:
            raise UserError("type: 'lora' adds to the linear layers of blocks, and the student has none; take train: all")
        student.requires_grad_(False)
        for block, name, linear in layers:
            replace_module(block, name, LowRankLinear(linear, self.rank, self.alpha / self.rank))


class FrozenSettings(Settings):
    """Nothing of the student; what is trained stands on its features."""

    type: Literal["frozen"] = "frozen"

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Freezes the student."""
        del blocks
        student.requires_grad_(False)


TRAINED = (AllSettings, LastBlocksSettings, LoraSettings)

if TYPE_CHECKING:
    AnyTrained = AllSettings | LastBlocksSettings | LoraSettings
else:
    AnyTrained = one_of(TRAINED)


class TrainedSettings(Settings):
    """What is common to all that can stand under `student` in a recipe."""

    if TYPE_CHECKING:
        type: str
        """Name of the kind: a literal in each."""

    train: AnyTrained = AllSettings()
    """The part that is trained. Heads, and summaries that no head read before, always are."""


class StudentSettings(TrainedSettings):
    """What is common to all students; each kind adds its own keys and `build`."""

    @property
    def shares_summary(self) -> bool:
        """Whether all heads read one and the same summary, so that the student has one however many teachers there are."""
        return False

    def build(self, num_summaries: int) -> Student:
        """A freshly initialised student (or one started from the weights that the settings name).

        num_summaries: how many summaries the heads read, one per teacher that has one.
        """
        raise NotImplementedError

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """The sizes of this kind of student; counted without allocating the weights."""
        raise NotImplementedError


class CustomSettings(StudentSettings):
    """The place of a student that is passed as an object: `amradio.distill(recipe, student=CustomStudent(module, patch_size=16))`."""

    type: Literal["custom"] = "custom"
    summaries: Literal["shared", "per_teacher"] = "shared"
    """`shared`: the object has one summary, which all heads read. `per_teacher`: it has one for each teacher that has one."""

    @property
    def shares_summary(self) -> bool:
        """Whether `summaries` is `shared`: the object's one summary serves all heads."""
        return self.summaries == "shared"

    def build(self, num_summaries: int) -> Student:
        """Raises UserError: there is nothing to build."""
        del num_summaries
        raise UserError(
            "student: a student of type 'custom' is an object that only Python can pass: amradio.distill(recipe, student=...), and "
            "amradio.load(path, student=...) for one that was trained"
        )

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """None: any module will do."""
        return []
