"""What the data room yields."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One partition's images of one step, on the CPU."""

    images: Tensor
    """uint8 [B, 3, H, W], RGB."""
    keys: tuple[str, ...]
    """B names, unique within the source."""
    draws: Tensor
    """float32 [B, 8], uniform in [0, 1): random numbers for the models, a function of (seed, step, index) alone."""
    skipped: tuple[str, ...] = ()
    """`key: reason` for each unreadable image that was met while this batch was filled."""
    remarks: tuple[str, ...] = ()
    """What else there is to tell of the files that were read: images of a shard that were passed over."""
