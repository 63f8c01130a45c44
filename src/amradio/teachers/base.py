"""The interface of teachers: frozen models that own their preprocessing and return `Features`."""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features, Kind
from ..images import central_square, resize
from ..licences import Ancestor


class MaskModel(Protocol):
    """Makes masks for prompts from a map of features: the capability of SAM and of teachers like it. Users call it by `MaskDecoder`."""

    @property
    def num_masks(self) -> int:
        """M, the masks of one prompt (SAM: the whole, a part, a part of it)."""
        ...

    def prepare_image(self, image: Tensor) -> Tensor:
        """[3, H, W], float in [0, 1] or uint8 -> float [1, 3, S, S] in [0, 1] on the teacher's device; S is the same for all images."""
        ...

    def scale_prompts(self, coordinates: Tensor, height: int, width: int) -> Tensor:
        """Points [..., 2] or boxes [..., 4] in px of an image of height x width -> px of the square that `prepare_image` makes of it."""
        ...

    def masks(
        self, spatial: Tensor, *, points: Tensor | None = None, labels: Tensor | None = None, boxes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, P, M, h, w] (an object where > 0) of P prompts, and their predicted IoU [B, P, M], float32.

        spatial: [B, H, W, D], of the teacher or of a head that learnt it, on any grid. points: [B, P, N, 2] (x, y) px of the square.
        labels: [B, P, N], 1 on the object, 0 off it; 1 by default. boxes: [B, P, 4] (x0, y0, x1, y1) px. Points, boxes or both.
        """
        ...

    def to_image(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Logits [B, P, M, h, w] of a square -> [B, P, M, height, width], on the image of which `prepare_image` made it."""
        ...


class Teacher(nn.Module):
    """A frozen foundation model. To add one, subclass this, call `super().__init__` and implement `encode`.

    Capabilities beyond features, which evaluations and `amradio.load(...)` find here: text (`has_text`, `encode_text`), maps in text space
    (`project_spatial`), masks for prompts (`mask_decoder`).

    Attributes: `patch_size` px of one cell of the map; `summary_dim` and `spatial_dim` channels, None where there is no such output;
    `input_size` px of the only legal (square) input, None where any multiple of the patch is legal; `licence` of the weights;
    `source`, where they come from; `compute_dtype` of the images that `encode` gets.
    """

    mean: Tensor
    std: Tensor
    compute_dtype: torch.dtype = torch.float32
    ancestors: tuple[Ancestor, ...] = ()
    """Models that the teacher itself was distilled from, where that is known."""
    has_text: bool = False
    """Whether `encode_text` works: the summary is then in the space of its text encoder."""
    needs_keys: bool = False
    """Whether its features are known by the keys of a run's images (`of_keys`) and cannot be computed from pixels."""

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        patch_size: int,
        dims: tuple[int | None, int | None],
        input_size: int | None,
        licence: str,
        source: str,
    ):
        """mean, std: of RGB in [0, 1]; dims: channels of (summary, spatial)."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.patch_size = patch_size
        self.summary_dim, self.spatial_dim = dims
        self.input_size = input_size
        self.licence = licence
        self.source = source

    def dim(self, kind: Kind) -> int | None:
        """Channels of one kind of feature, None where the teacher has none."""
        return self.summary_dim if kind == "summary" else self.spatial_dim

    def freeze(self) -> Self:
        """Evaluation mode, no gradients."""
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - nn.Module's signature
        """Stays in evaluation mode whatever `mode` is: a frozen model has no other."""
        return super().train(False)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The legal size to which a training view of height x width px is resized (the whole view stays in)."""
        if self.input_size is not None:
            return self.input_size, self.input_size
        step = self.patch_size
        return max(step, round(height / step) * step), max(step, round(width / step) * step)

    def prepare(self, images: Tensor) -> Tensor:
        """The original library's own preprocessing, less the normalisation: [B, 3, H, W] in [0, 1] of any size to a legal size.

        Here, bicubic: the whole image at the nearest legal size, or its central square where there is one square size only (`input_size`).
        """
        shown = images if self.input_size is None else central_square(images)
        return resize(shown, self.size_for(*shown.shape[-2:]))

    def encode(self, images: Tensor) -> Features:
        """Features of normalised images [B, 3, H, W] of a legal size, in `compute_dtype`."""
        raise NotImplementedError

    def of_keys(self, keys: Sequence[str]) -> Features:
        """float32 features of the images with these keys, on the CPU; for teachers with `needs_keys`."""
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str]) -> Tensor:  # noqa: ARG002 - for those that have a text encoder
        """Embeddings of texts in the space of the summary: float32 [N, summary_dim] on the teacher's device, not normalised.

        Raises UserError where the teacher has no text encoder.
        """
        raise UserError(f"teacher '{self.source}' has no text encoder; CLIP, OpenCLIP and SigLIP have one")

    def project_spatial(self, spatial: Tensor) -> Tensor:
        """A map in the space of the text encoder: the summary that each cell would have as an image by itself.

        spatial: [B, H, W, spatial_dim], of this teacher or of the head that learnt it. Returns float32 [B, H, W, summary_dim], not
        normalised, without gradients. Raises UserError where there is no known way there.
        """
        if not self.has_text:
            raise UserError(f"teacher '{self.source}': its map has no text space; take a clip, open_clip or siglip teacher")
        with torch.inference_mode():
            projected = self._project_cells(spatial.flatten(0, 2)).float().unflatten(0, spatial.shape[:3])
        return projected.clone()  # an ordinary tensor, not one of inference mode

    def _project_cells(self, cells: Tensor) -> Tensor:  # noqa: ARG002 - for those that have a text encoder
        """Cells [N, spatial_dim] -> [N, summary_dim]."""
        raise UserError(f"teacher '{self.source}': its map has no known way into text space; take a clip, open_clip or siglip teacher")

    @property
    def mask_decoder(self) -> MaskModel | None:
        """What makes masks for prompts from a map of this teacher, or of a head that learnt it; None where there is no such thing."""
        return None

    def drop_encoder(self) -> None:
        """Frees the image encoder where something else stays of use (texts, maps in text space, masks); `encode` no longer works then."""

    def forward(self, images: Tensor) -> Features:
        """RGB [B, 3, H, W] in [0, 1] of a legal size -> float32 Features, without gradients.

        The tensors are ordinary ones (a loss may save them for its backward pass). Raises UserError at an illegal size.
        """
        self._check_size(*images.shape[-2:])
        with torch.no_grad():  # torch.compile cannot trace views of tensors of inference mode
            summary, spatial = self.encode(((images.float() - self.mean) / self.std).to(self.compute_dtype))
        return Features(_ordinary(summary), _ordinary(spatial))

    def _check_size(self, height: int, width: int) -> None:
        legal = self.size_for(height, width)
        if (height, width) != legal:
            rule = f"multiples of {self.patch_size} px" if self.input_size is None else f"{self.input_size} x {self.input_size} px only"
            raise UserError(
                f"teacher '{self.source}': images of {height} x {width} px; it takes {rule}; resize to {legal[0]} x {legal[1]} px "
                "(Teacher.size_for), or use Teacher.prepare"
            )


def _ordinary(features: Tensor | None) -> Tensor | None:
    """A float32 copy: of a caller's inference mode nothing stays, whose tensors autograd refuses to save."""
    return None if features is None else features.to(torch.float32, copy=True)


def to_grid(tokens: Tensor, images: Tensor, patch_size: int) -> Tensor:
    """Patch tokens [B, N, D], row-major, of images [B, 3, H, W] -> [B, H // patch_size, W // patch_size, D]."""
    return tokens.unflatten(1, (images.shape[-2] // patch_size, images.shape[-1] // patch_size))
