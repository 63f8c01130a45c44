"""A frozen model with a head per teacher: features of images, texts and masks in the spaces of its teachers."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from ..errors import UserError
from ..features import Features
from ..image_input import InputCheck, Picture, Size, one_picture
from ..images import resize
from ..network import Network, NetworkConfig
from ..students.base import Aggregation, Conditioner
from .described_network import DescribedNetwork
from .pictures import batch_of
from .showing import show

if TYPE_CHECKING:  # transformers and its kin take seconds to import, and only `text` and `masks` want them
    from ..teachers.base import Teacher
    from ..teachers.mask_decoder import MaskDecoder
    from ..teachers.text_encoder import TextEncoder


class Model(DescribedNetwork):
    """A student with its heads, ready to use: in eval mode; heads predict raw teacher features.

    Attributes: `config` as in config.json; `ignored_keys`: keys of the file that are known to do nothing, and were left out.
    """

    def __init__(self, config: NetworkConfig, network: Network, ignored_keys: tuple[str, ...] = ()):
        super().__init__(config, network)
        self.ignored_keys = ignored_keys
        self._check = InputCheck()
        self.eval().requires_grad_(False)

    @overload
    def forward(self, images: Tensor, heads: None = None) -> Features: ...
    @overload
    def forward(self, images: Tensor, heads: str | Iterable[str]) -> dict[str, Features]: ...
    def forward(self, images: Tensor, heads: str | Iterable[str] | None = None) -> Features | dict[str, Features]:
        """Features of a batch of images: of the backbone, or of the backbone and some heads.

        Args:
            images: [B, 3, H, W], RGB float in [0, 1], of a legal size (`nearest_size`), on the model's device. Any float dtype: images are
                normalised in float32 and cast to the dtype of the weights, in which features are returned.
            heads: a name or several; None for the backbone alone.

        Returns: without `heads` the backbone's Features, summary [B, summary_dim] and spatial [B, H', W', spatial_dim]; with `heads` a dict
        of Features with `backbone` and an entry for each name.
        Raises UserError for an unknown head, a wrong shape, type or size, and for values outside [0, 1] (on a GPU only the first batch is
        checked, because the check waits for the GPU).
        """
        self._check(images)
        if heads is None:
            return self.network(images)["backbone"]
        return self.network(images, None, self._known(heads))

    @overload
    def features(self, images: Picture | Sequence[Picture], heads: None = None, size: Size | Literal["own"] = None) -> Features: ...
    @overload
    def features(
        self, images: Picture | Sequence[Picture], heads: str | Iterable[str], size: Size | Literal["own"] = None
    ) -> dict[str, Features]: ...
    @torch.no_grad()
    def features(
        self, images: Picture | Sequence[Picture], heads: str | Iterable[str] | None = None, size: Size | Literal["own"] = None
    ) -> Features | dict[str, Features]:
        """Features of pictures: `model.features("photo.jpg", heads="clip")["clip"].summary`. Gradients are not kept.

        Args:
            images: one picture or a list of B pictures, as `amradio.read_image` takes them: paths, Pillow images, arrays or tensors.
            heads: as for `forward`.
            size: px of the short side, or (height, width); None for the size of the last training where the model knows it, else, and for
                "own", the size of the picture. The whole picture is resized to the legal size nearest to that.

        Returns: as `forward`.
        Raises UserError where a picture cannot be read, or pictures come out at several sizes (then give `size` as a pair).
        """
        known = None if heads is None else self._known(heads)  # before pictures are read
        return self(batch_of(self, images, size), known)

    @overload
    def pack(self, images: Sequence[Tensor], heads: None = None) -> list[Features]: ...
    @overload
    def pack(self, images: Sequence[Tensor], heads: str | Iterable[str]) -> list[dict[str, Features]]: ...
    def pack(self, images: Sequence[Tensor], heads: str | Iterable[str] | None = None) -> list[Features] | list[dict[str, Features]]:
        """Features of images of several sizes in one pass, without padding: each image attends to itself alone.

        Args:
            images: tensors [3, H, W] as for `forward`, each of a legal size; the sizes may differ.
            heads: as for `forward`.

        Returns: for each image what `forward` returns for it alone (B = 1).
        Raises UserError as `forward`, and where the student cannot do this (ViT students without windows can).
        """
        _check_each(self._check, images)
        answers = self.network.pack(images, self._known(heads or ()))
        return [features["backbone"] for features in answers] if heads is None else answers

    @overload
    def intermediates(
        self,
        images: Tensor,
        indices: int | Iterable[int] | None = None,
        *,
        aggregation: Aggregation = "sparse",
        prefix: Literal[False] = False,
    ) -> list[Features]: ...
    @overload
    def intermediates(
        self, images: Tensor, indices: int | Iterable[int] | None = None, *, aggregation: Aggregation = "sparse", prefix: Literal[True]
    ) -> list[tuple[Features, Tensor]]: ...
    def intermediates(
        self, images: Tensor, indices: int | Iterable[int] | None = None, *, aggregation: Aggregation = "sparse", prefix: bool = False
    ) -> list[Features] | list[tuple[Features, Tensor]]:
        """Features after blocks of a ViT student, without final norm and heads.

        Published models that normalise their maps between the blocks (RADIOv2.5-H-norm) do so here as well.

        Args:
            images: as for `forward`.
            indices: numbers of blocks from 0, negative ones count from the end; a number n stands for the last n blocks, None for all.
            aggregation: `sparse` returns the outputs of these blocks; `dense` means over each of them and the blocks before it, back to the
                previous one of `indices`.
            prefix: also return the tokens before the patches, [B, num_prefix, D]: summaries, then registers.

        Returns: one Features a block, shapes as of `forward`; with `prefix` pairs (Features, tokens).
        Raises UserError where the student is no ViT or has no such block.
        """
        _check_aggregation(aggregation)
        return self.network.intermediates(images, _numbers(indices), aggregation, prefix)

    def text(self, head: str, *, teacher: "Teacher | str | Path | None" = None) -> "TextEncoder":
        """The text encoder of a head's teacher: `model.text("clip")(["a dog"])` is in the space of the head's summary.

        `model.text("clip").map("photo.jpg", ["a dog", "grass"])` computes a heat map for each text: see `TextEncoder.map`.

        Args:
            head: name of the head.
            teacher: where the teacher is, if config.json does not lead to it: a folder, a hub name, `embedded clip`, or a Teacher object.

        Raises UserError where the head has no summary, or the teacher is not on this machine, has no text encoder or other dimensions.
        """
        from ..teachers.from_head import text_encoder

        part = self.config.heads[self._known([head])[0]]
        dims = (part.summary and part.summary.dim, part.spatial and part.spatial.dim)
        return text_encoder(head, part.teacher, dims, teacher, partial(_map_of, self, head)).to(self.device)

    def masks(self, head: str, *, teacher: "Teacher | str | Path | None" = None) -> "MaskDecoder":
        """SAM's promptable mask decoder on the map of a head: see `MaskDecoder`.

        The student sees the square that SAM would see, at the px at which the head was trained (`MaskDecoder.look` takes other sizes).

        Args:
            head: name of the head.
            teacher: as for `text`.

        Raises UserError where the head has no map, or the teacher is not on this machine, has no mask decoder or other dimensions.
        """
        from ..teachers.from_head import mask_decoder

        part = self.config.heads[self._known([head])[0]]

        def encode(square: Tensor, image_size: int | None) -> Tensor:
            side = image_size or part.image_size or self.image_size or square.shape[-1]
            return _spatial(self(resize(square, self.nearest_size(side, side)), heads=[head])[head])

        return mask_decoder(head, part.teacher, part.spatial and part.spatial.dim, teacher, encode, one_picture).to(self.device)

    def external_preprocessing(self) -> Conditioner:
        """Returns the module that normalises images and leaves the identity in the model, which then takes normalised images.

        For pipelines that normalise by themselves. A second call returns the identity.
        """
        self._check.looks = False
        return self.network.student.external_preprocessing()

    show = show

    def set_windows(self, size: int | None, *, num_global: int = 4, num_windowed: int | None = None) -> None:
        """ViTDet's windowed mode: most blocks attend only within windows, which is faster on large images. Weights do not change.

        As published: `num_global` 4, but 8 for RADIOv2.5-g and C-RADIOv2-g; `num_windowed` 5 for RADIOv2 and v2.1; C-RADIOv3 was not made
        for it.

        Args:
            size: patches along the side of a window, of which the sides of images are then multiples; None for global attention.
            num_global: how many blocks stay global, evenly spread, the last one among them.
            num_windowed: in place of `num_global`, how many windowed blocks there are between two global ones.

        Raises UserError where the student is no ViT, or the numbers do not fit its blocks.
        """
        self.network.student.set_windows(size, num_global, num_windowed)

    def set_tokens(self, num_tokens: int | None) -> None:
        """How many tokens of its code a RADIO1D keeps: features are made of these alone, at their usual shape.

        Args:
            num_tokens: 1 or more, cut to as many as an image has; None for all.

        Raises UserError for another student or number.
        """
        from ..students.radio1d import radio1d

        if num_tokens is not None or self.config.student.type == "radio1d":
            radio1d(self.network.student, "num_tokens").set_tokens(num_tokens)

    def code(self, images: Tensor) -> Tensor:
        """The ordered tokens that a RADIO1D writes an image into, of which any first few stand for the whole.

        Args:
            images: as for `forward`.

        Returns: [B, k, D], k as of `set_tokens`; there are H/p * W/p, divided by 4 for every merge.
        Raises UserError as `forward`, for another student and in training mode.
        """
        from ..students.radio1d import radio1d

        self._check(images)
        return radio1d(self.network.student, "code").code(images)


def _numbers(indices: int | Iterable[int] | None) -> int | list[int] | None:
    return indices if isinstance(indices, int) or indices is None else list(indices)


def _check_aggregation(aggregation: str) -> None:
    if aggregation not in ("sparse", "dense"):
        raise UserError(f"aggregation: there is no '{aggregation}'; there is: sparse, dense")


def _check_each(check: InputCheck, images: Sequence[Tensor]) -> None:
    """Images [3, H, W]; the UserError of a wrong one says its number."""
    for number, image in enumerate(images):
        try:
            check(image, "[3, H, W]")
        except UserError as error:
            raise UserError(*(f"{problem} (number {number})" for problem in error.problems)) from None


def _map_of(model: Model, head: str, images: Any, size: Any) -> Tensor:
    return _spatial(model.features(images, head, size)[head])


def _spatial(features: Features) -> Tensor:
    assert features.spatial is not None, "only heads with a map are asked for one"
    return features.spatial
