"""What may be chosen when features of many images are written to a file."""

from typing import Annotated, Literal

import pydantic
import torch

from ..config import AsTuple, Pixels, Positive, Settings, Workers

ImageSize = Pixels | Literal["trained", "own"]
DTYPES = {"float16": torch.float16, "float32": torch.float32}


class EmbedSettings(Settings):
    """Of `amradio.embed`."""

    heads: Annotated[tuple[str, ...], AsTuple, pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    """Heads whose features are written beside those of the backbone; a text is one head."""
    spatial: Literal["none", "pooled", "full"] = "none"
    """What becomes of maps: left out, their mean over the image, or every cell."""
    image_size: ImageSize = "trained"
    """px of the short side; the whole image is resized, its aspect kept, to the nearest legal size. `trained`: the size at which the model
    was trained last (where it does not say: `own`); `own`: that of each image."""
    batch_size: Positive = 64
    """Images of one legal size that the model sees at once."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the numbers in the file."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the computation; auto takes bfloat16 where the device computes it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_workers: Workers | None = None
    """Processes that read images; null: the cores that are there, less one; 0: none."""
