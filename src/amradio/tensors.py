"""Files of tensors: read and written whole, and what they contain without reading it."""

import json
import math
import stat
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .errors import UserError

GIT_LFS = b"version https://git-lfs"
"""How a file begins that `git clone` left without git-lfs: it names the real one."""
PICKLE_BYTES = 32 << 20
"""Of the pickle in a checkpoint, which lists its tensors: 10,000 tensors take 3 MB."""
SLACK = 1_000_000
"""Elements that a model may have beyond twice those of its files: parameters that libraries fill in themselves."""


class Held(NamedTuple):
    """What files of weights contain."""

    elements: int
    """Numbers in all tensors, at most."""
    tensors: int
    """Tensors, at most."""


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of any new file: the library makes it readable for its owner alone.

    Tensors may lie on any device and in any order in memory. The same tensors and metadata give the same bytes. Raises OSError or
    SafetensorError where the disk refuses.
    """
    path.touch()
    mode = path.stat().st_mode
    stated = {"format": "pt", **(metadata or {})}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, stated)
    _sort_metadata(path)
    path.chmod(mode)


def _sort_metadata(path: Path) -> None:
    """Puts the metadata in the order of their keys: the library writes them in that of a hash table, another one in every run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        stated = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
        text = json.dumps(stated | header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same header in another order is no longer"
        file.seek(8)
        file.write(text.ljust(length))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; raises UserError where it is missing, damaged or no regular file."""
    check_weights(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path, error) from None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file, from its header; errors as of `read_tensors`."""
    check_weights(path)
    try:
        with safe_open(path, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def stated_in(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; errors as of `read_tensors`."""
    check_weights(path)
    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(f"{path}: not a whole safetensors file ({reason[:200]}); copy or download it again")


def check_weights(path: Path) -> None:
    """Raises UserError where a file of weights is missing, empty, a git-lfs pointer, or no regular file (a folder, a pipe, a device)."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; the folder is not complete: copy or download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: this is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'} and not a file; copy the file here")
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if start == GIT_LFS:
        raise UserError(f"{path}: this is a git-lfs pointer and not the file; run `git lfs pull` where it came from")
    if not start:
        raise UserError(f"{path}: the file is empty; copy or download it again")


def check_archive(path: Path) -> None:
    """Raises UserError where a zip file is not as torch.save writes it: entries unpacked, no larger than the file, a short pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: not a whole checkpoint of torch ({error}); copy or download it again") from None
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    total = sum(entry.file_size for entry in entries)
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if packed:
        raise UserError(f"{path}: '{packed[0][:80]}' in it is compressed, which torch.save never does; nothing of it was read")
    if total > path.stat().st_size:
        raise UserError(f"{path}: its index lists {total:,} bytes and the file has {path.stat().st_size:,}; copy or download it again")
    if any(entry.file_size > PICKLE_BYTES for entry in pickles):
        raise UserError(f"{path}: its list of tensors has {max(e.file_size for e in pickles):,} bytes, at most {PICKLE_BYTES:,} are read")


def held_in(paths: Iterable[Path]) -> Held:
    """What files of weights contain, without reading them; of pickled ones a bound from their size. Raises UserError as `tensor_shapes`."""
    elements = tensors = 0
    for path in paths:
        if path.suffix == ".safetensors":
            shapes = tensor_shapes(path)
            elements, tensors = elements + sum(math.prod(shape) for shape in shapes.values()), tensors + len(shapes)
            continue
        check_weights(path)
        if zipfile.is_zipfile(path):
            check_archive(path)
        elements, tensors = elements + path.stat().st_size, tensors + path.stat().st_size // 64
    return Held(elements, tensors)


class TooManyError(Exception):
    """More parameters were built than were allowed."""


class _Building(threading.local):
    """What is done in this thread to each parameter that a module registers: watchers, the first one first."""

    watchers: tuple[Callable[[nn.Parameter], nn.Parameter], ...] = ()


_building = _Building()


def _registered(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is not None:
        for watcher in _building.watchers:
            parameter = watcher(parameter)
    return parameter


# One for good: torch has one list of such hooks for all threads, and others may be building modules, which run over it.
register_module_parameter_registration_hook(_registered)  # type: ignore[arg-type]  # its stub forgets the result


@contextmanager
def watching(watcher: Callable[[nn.Parameter], nn.Parameter]) -> Iterator[None]:
    """Within it modules that this thread builds register what `watcher` returns for each of their parameters."""
    before = _building.watchers
    _building.watchers = (*before, watcher)
    try:
        yield
    finally:
        _building.watchers = before


@contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """Within it the building of modules ends with TooManyError as soon as they have more parameters than this."""
    count = 0

    def counted(parameter: nn.Parameter) -> nn.Parameter:
        nonlocal count
        count += 1
        if count > parameters:
            raise TooManyError
        return parameter

    with watching(counted):
        yield
