"""Files of tensors."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of any new file: the library makes it readable for its owner alone.

    Tensors may lie on any device and in any order in memory. Raises OSError or SafetensorError where the disk refuses.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {"format": "pt"}))
    path.chmod(mode)
