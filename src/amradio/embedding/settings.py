"""What may be chosen when features of many images are written to a file; reading it imports no torch."""

from typing import Annotated, Literal

import pydantic

from ..config import AsTuple, Autocast, Device, Pixels, Positive, ReadingProcesses, Settings

ImageSize = Pixels | Literal["trained", "own"]


class EmbedSettings(Settings):
    """Options of `amradio.embed` and of the command `amradio embed`, whose help these descriptions are."""

    heads: Annotated[tuple[str, ...], AsTuple, pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    """Heads whose features are written beside those of the backbone."""
    spatial: Literal["none", "pooled", "full"] = "none"
    """Maps: left out (none), their mean over the image (pooled), or every cell (full)."""
    image_size: ImageSize = "trained"
    """px of the short side; the whole image is resized to the nearest legal size, its aspect kept. `trained`: the size of the model's last
    training (`own` where config.json does not state it); `own`: that of each image."""
    batch_size: Positive = 64
    """Images in a batch; all have one legal size."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the numbers in the file."""
    precision: Autocast = "float32"
    device: Device = "auto"
    num_workers: ReadingProcesses = None
