"""Well-known teachers: what they give, what they cost, under which terms."""

from dataclasses import dataclass
from pathlib import Path

from .loading import cached_folder, licence_in


@dataclass(frozen=True)
class Known:
    """One line of `amradio teachers`."""

    kind: str
    """`type` in a recipe."""
    model: str
    """Hub name, or the name of what is shipped."""
    million_parameters: float
    """Of the vision tower."""
    summary_dim: int | None
    """Channels of the summary, None where there is none."""
    spatial_dim: int
    """Channels of the map."""
    input_size: int | None
    """px of the only legal input; None: any multiple of the patch."""
    patch_size: int
    """px of one cell of the map."""
    licence: str
    """Of the weights."""

    @property
    def is_here(self) -> bool:
        """Whether this machine has the weights (shipped, or complete in the hub cache). No network."""
        return self.kind == "embedded" or cached_folder(self.model) is not None


def catalogue() -> list[Known]:
    """All well-known teachers, by kind."""
    return list(_KNOWN)


def licence_of(model: str, folder: Path) -> str:
    """The licence of a teacher's weights: known here, else what its model card says, else that nobody said."""
    known = next((entry.licence for entry in _KNOWN if entry.model == model), None)
    return known or licence_in(folder) or "not stated; see the model card"


_KNOWN: tuple[Known, ...] = ()
