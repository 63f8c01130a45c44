"""`amradio.load` and what it returns: a frozen model with a head per teacher."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from . import formats
from .devices import DTYPES
from .errors import UserError, brief, nearest
from .features import Features
from .image_input import InputCheck, Picture, Size, check_size, least_side, one_picture, pixels_of, scaled_size
from .images import resize
from .network import Network, NetworkConfig, cast_weights
from .students.base import Aggregation, Conditioner, Student

if TYPE_CHECKING:  # transformers and its kin take seconds to import, and only `text` and `masks` want them
    from .teachers.base import Teacher
    from .teachers.mask_decoder import MaskDecoder
    from .teachers.text_encoder import TextEncoder


class Model(nn.Module):
    """A student with its heads, ready to use: in eval mode; heads predict raw teacher features.

    Attributes: `config` as in config.json; `ignored_keys`: keys of the file that are known to do nothing, and were left out.
    """

    def __init__(self, config: NetworkConfig, network: Network, ignored_keys: tuple[str, ...] = ()):
        super().__init__()
        self.config = config
        self.network = network
        self.ignored_keys = ignored_keys
        self._check = InputCheck()
        self.eval().requires_grad_(False)

    def __repr__(self) -> str:
        return describe(self)

    @overload
    def forward(self, images: Tensor, heads: None = None) -> Features: ...
    @overload
    def forward(self, images: Tensor, heads: str | Iterable[str]) -> dict[str, Features]: ...
    def forward(self, images: Tensor, heads: str | Iterable[str] | None = None) -> Features | dict[str, Features]:
        """Features of images.

        images: [B, 3, H, W], RGB float in [0, 1], of a legal size (`nearest_size`), on the model's device. Any float dtype: they are
        normalised in float32 and cast to the dtype of the weights, in which features come back.
        Without `heads` the backbone's Features: summary [B, summary_dim], spatial [B, H', W', spatial_dim].
        With `heads` (a name or several) a dict with `backbone` and one entry a name. Raises UserError for an unknown head, a wrong shape,
        type or size, and for values that are not in [0, 1] (on a GPU only the first batch is checked: the check waits for it).
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

        images: one picture or a list of them, each as `amradio.read_image` takes it: a path, a Pillow image, an array, a tensor.
        heads, and what is returned: as of `forward`; B is the number of pictures.
        size: px of the short side, or (height, width); None for the size of the last training where the model knows it, else, and for
        "own", that of the picture. It is then rounded to the nearest legal size, and the whole picture is resized to that.
        Raises UserError where a picture cannot be read, or pictures come out at several sizes (give `size` as a pair then).
        """
        known = None if heads is None else self._known(heads)  # before pictures are read
        return self(_batch(self, images, size), known)

    @overload
    def pack(self, images: Sequence[Tensor], heads: None = None) -> list[Features]: ...
    @overload
    def pack(self, images: Sequence[Tensor], heads: str | Iterable[str]) -> list[dict[str, Features]]: ...
    def pack(self, images: Sequence[Tensor], heads: str | Iterable[str] | None = None) -> list[Features] | list[dict[str, Features]]:
        """Features of images of several sizes in one pass, without padding: each image attends to itself alone.

        images: [3, H, W] each, as of `forward`, every one of a legal size of its own. Returns for each what `forward` gives for it alone
        (with B = 1). Raises UserError as `forward`, and where the student cannot (ViT students without windows can).
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
        """Features after blocks, for ViT students; UserError for others. Shapes as of `forward`; no norm and no head is laid on them,
        but for the published models that normalise their maps between the blocks (RADIOv2.5-H-norm).

        indices: numbers of blocks, negative ones count from the end; a number n stands for the last n blocks, None for all.
        aggregation: sparse gives the outputs of these blocks; dense the mean over each of them and the blocks before it, back to the
        last one asked for. prefix: pairs (features, all tokens before the patches [B, num_prefix, D]: summaries, then registers).
        """
        _check_aggregation(aggregation)
        return self.network.intermediates(images, _numbers(indices), aggregation, prefix)

    def text(self, head: str, *, teacher: "Teacher | str | Path | None" = None) -> "TextEncoder":
        """The text encoder of a head's teacher: `model.text("clip")(["a dog"])` lies in the space of the head's summary.

        `model.text("clip").map("photo.jpg", ["a dog", "grass"])` gives a heat map for each text: see `TextEncoder.map`.

        teacher: where it is, if config.json does not lead to it: a folder, a hub name, `embedded clip`, or a Teacher object.
        Raises UserError where the head has no summary, or the teacher is not on this machine, has no text encoder or other dimensions.
        """
        from .teachers.from_head import text_encoder

        part = self.config.heads[self._known([head])[0]]
        dims = (part.summary and part.summary.dim, part.spatial and part.spatial.dim)
        return text_encoder(head, part.teacher, dims, teacher, partial(_map_of, self, head)).to(self.device)

    def masks(self, head: str, *, teacher: "Teacher | str | Path | None" = None) -> "MaskDecoder":
        """SAM's promptable mask decoder on the map of a head: see `MaskDecoder`. teacher, errors: as of `text`.

        The student sees the square that SAM would see, at the px at which the head was trained (`MaskDecoder.look` takes others).
        """
        from .teachers.from_head import mask_decoder

        part = self.config.heads[self._known([head])[0]]

        def encode(square: Tensor, image_size: int | None) -> Tensor:
            side = image_size or part.image_size or self.image_size or square.shape[-1]
            return _spatial(self(resize(square, self.nearest_size(side, side)), heads=[head])[head])

        return mask_decoder(head, part.teacher, part.spatial and part.spatial.dim, teacher, encode, one_picture).to(self.device)

    def external_preprocessing(self) -> Conditioner:
        """Hands out what normalises images, and leaves the identity inside: from then on the model takes normalised images.

        For pipelines that normalise by themselves. A second call hands out the identity.
        """
        self._check.looks = False
        return self.network.student.external_preprocessing()

    def set_windows(self, size: int | None, *, num_global: int = 4, num_windowed: int | None = None) -> None:
        """ViTDet's windowed mode: most blocks attend within windows of `size` x `size` patches only, which is quicker on large images.

        None ends it. Sides are then multiples of patch_size * size. num_global: how many blocks stay global, evenly spread and the last
        one among them; num_windowed: instead, how many windowed blocks stand between two of them. As published: num_global 4, but for
        RADIOv2.5-g and C-RADIOv2-g (8), and RADIOv2 and v2.1 (num_windowed 5); C-RADIOv3 was not made for it. Raises UserError.
        """
        self.network.student.set_windows(size, num_global, num_windowed)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        return tuple(self.config.heads)

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the map."""
        return self.network.student.patch_size

    @property
    def window_size(self) -> int | None:
        """Patches of a window's side in windowed mode, None without windows."""
        return self.network.student.window_size

    @property
    def min_resolution_step(self) -> int:
        """px: the least legal side, of which the others are multiples (patch_size, times window_size where there are windows)."""
        return self.nearest_size(1, 1)[0]

    @property
    def image_size(self) -> int | None:
        """px at which most heads were trained last, the size to prefer; None where the file does not say."""
        return self.config.image_size

    @property
    def num_summaries(self) -> int:
        """Summaries of the student, one per teacher that has one; the backbone's summary may leave some out."""
        return self.network.student.num_summaries

    @property
    def summary_dim(self) -> int:
        """Channels of the backbone's summary: its summaries, one after another."""
        return self.network.summary_dim

    @property
    def spatial_dim(self) -> int:
        """Channels of the backbone's map."""
        return self.network.spatial_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the features."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights, where images must be."""
        return next(self.parameters()).device

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The legal input size nearest to height x width px. Raises UserError where these are no whole numbers above 0."""
        _check_sides(height, width)
        return self.network.student.nearest_size(int(height), int(width))

    def _known(self, heads: str | Iterable[str]) -> list[str]:
        """The names as a list; UserError for one that is not there."""
        return head_names(heads, self.config.heads)


def _numbers(indices: int | Iterable[int] | None) -> int | list[int] | None:
    return indices if isinstance(indices, int) or indices is None else list(indices)


def _check_aggregation(aggregation: str) -> None:
    if aggregation not in ("sparse", "dense"):
        raise UserError(f"aggregation: there is no '{aggregation}'; there is: sparse, dense")


def _check_sides(*sides: Any) -> None:
    wrong = [side for side in sides if not isinstance(side, int | np.integer) or side < 1]
    if wrong:
        raise UserError(f"nearest_size: expected height and width in px, whole numbers above 0, found {brief(wrong[0])}")


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


def _batch(model: Model, images: Picture | Sequence[Picture], size: Size | Literal["own"]) -> Tensor:
    """One picture or a list of them as one batch [B, 3, H, W]; UserError where there is none, or they come out at several sizes."""
    pictures: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    if not pictures:
        raise UserError("images: there is none; give at least one picture")
    views = [view(model, picture, size) for picture in pictures]
    sizes = {tuple(pixels.shape[-2:]) for pixels in views}
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:4])
        raise UserError(f"images: resized to legal sizes they differ ({listed} px); give size=(height, width), or one picture at a time")
    return torch.cat(views)


def view(model: Model, picture: Picture, size: Size | Literal["own"]) -> Tensor:
    """A picture as the model takes it: [B, 3, H, W] of a legal size, on the model's device. size: as of `Model.features`."""
    wanted = model.image_size if size is None else None if size == "own" else size
    check_size(wanted)
    pixels = pixels_of(picture, least_side(wanted)).to(model.device)
    height, width = scaled_size(pixels.shape[-2], pixels.shape[-1], wanted)
    return resize(pixels, model.nearest_size(height, width))


def describe(model: Model) -> str:
    """One line: what a model is, its size, and its heads."""
    student = model.config.student
    settings = student.model_dump()
    kind = " ".join(str(part) for part in (student.type, settings.get("size") or settings.get("model")) if part)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    trained = f"trained at {model.image_size} px, " if model.image_size else ""
    dtype = str(model.dtype).removeprefix("torch.")
    heads = f"heads: {', '.join(model.heads)}" if model.heads else "no heads"
    return f"Model({kind}, {millions:.1f} M parameters, patch {model.patch_size} px, {trained}{dtype} on {model.device}, {heads})"


def head_names(heads: str | Iterable[str], there: Iterable[str]) -> list[str]:
    """The names of heads as a list, each once; a text is one name. Raises UserError for those that are not among `there`."""
    wanted = list(dict.fromkeys([heads] if isinstance(heads, str) else heads))
    there = list(there)
    hint = "this model has no heads, only its backbone" if not there else ""
    problems = [f"heads: there is no head '{name}'; {hint or nearest(str(name), there)}" for name in wanted if name not in there]
    if problems:
        raise UserError(*problems)
    return wanted


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | str | None = None,
    align_corners: bool | None = None,
    window_size: int | None = None,
    student: Student | None = None,
) -> Model:
    """Loads a model in any format that `formats.FORMATS` reads, found from the content; of a run folder its model. Never unpickles code.

    dtype: of weights and features, `float32`, `bfloat16` or `float16`; None for that of the file. align_corners: how the position table
    of a ViT is stretched, None for what the file says. window_size: patches of a window's side, see `Model.set_windows`. student: for one
    of type `custom`, an object built as that which was trained; it takes the weights.
    Raises UserError where there is no model, a file is damaged, weights and config do not fit, or the student has no such option.
    """
    wanted = _dtype(dtype)
    loaded = formats.read(path, align_corners, student)
    model = Model(loaded.config, loaded.network, loaded.ignored_keys)
    problems: list[str] = []
    if align_corners is not None and "align_corners" not in type(loaded.config.student).model_fields:
        problems.append(f"align_corners: a '{loaded.config.student.type}' student has no position table to stretch; leave it out")
    try:
        model.set_windows(window_size)
    except UserError as error:
        problems.extend(error.problems)
    if problems:
        raise UserError(*(f"{path}: {problem}" for problem in problems))
    if wanted is not None:
        cast_weights(model.network, wanted)
    return model.to(device)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and known not in DTYPES.values():
        raise UserError(f"dtype: found {dtype!r}; there is: {', '.join(DTYPES)}")
    return known
