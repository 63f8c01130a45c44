"""The guarded reader: every file is opened and every picture decoded here, within bounds that are checked before memory is taken."""

import io
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from .metadata import without_metadata
from .walk import special

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is opened; Pillow's other readers are never tried on a file that a stranger made."""
MAX_PIXELS = 178_956_970
"""Larger pictures are refused from their header; it is where Pillow itself stops."""
MAX_BYTES = 2**30
"""Larger files are no encoded picture of MAX_PIXELS that anybody stores; a bound on what is read into memory."""

Encoded = bytes | np.ndarray
"""A file's bytes, or pixels uint8 [H, W, 3] RGB."""

Found = TypeVar("Found")


class UnreadableError(Exception):
    """A picture that cannot be read; the message is the reason."""


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, opened without waiting; pipes, sockets, devices and folders raise UnreadableError, others OSError."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 - the caller closes it
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                return file
            file.close()  # it became another thing in between
    except ValueError as error:  # a name with a NUL, or with letters that the system cannot write
        raise UnreadableError(f"not a name of a file ({error})") from None
    raise UnreadableError(f"{special(status.st_mode)}, not a file")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_file(path: str | Path, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES, or `size` of them from `start` on. Raises UnreadableError or OSError."""
    if size is not None and size > MAX_BYTES:
        raise UnreadableError(f"{size:,} bytes are more than the limit of {MAX_BYTES:,} for one picture")
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES and size is None:
            raise UnreadableError(f"it has more than the limit of {MAX_BYTES:,} bytes for one picture")
        file.seek(start)
        pieces, left = [], MAX_BYTES + 1 if size is None else size
        while left and (piece := file.read(min(left, 2**24))):
            pieces.append(piece)
            left -= len(piece)
    if size is None and not left:  # such files of the system state a size of 0
        raise UnreadableError(f"it has more than the limit of {MAX_BYTES:,} bytes for one picture")
    return b"".join(pieces)


def guarded(data: Encoded, read: Callable[[Image.Image], Found], formats: tuple[str, ...] = FORMATS) -> Found:
    """`read` of the opened picture. Raises UnreadableError.

    A picture of more than MAX_PIXELS is refused from its header. Where metadata that cannot be read keep Pillow from the pixels, the
    picture is read without them.
    """
    if isinstance(data, np.ndarray):
        return read(Image.fromarray(data))
    # Pillow warns of odd metadata and of large pictures; a picture is either read or refused here.
    with warnings.catch_warnings(action="ignore"):
        try:
            return _opened(data, read, formats)
        except UnreadableError:
            raise
        except Image.DecompressionBombError:
            raise UnreadableError(f"it has more than the limit of {MAX_PIXELS:,} pixels") from None
        except MemoryError:
            raise UnreadableError("there is not enough memory to decode it") from None
        except Exception as error:  # Pillow's readers raise nearly anything on broken input
            for bare in without_metadata(data):
                try:
                    return _opened(bare, read, formats)
                except Exception:
                    continue
            raise UnreadableError(_reason(error, data, formats)) from error


def _opened(data: bytes, read: Callable[[Image.Image], Found], formats: tuple[str, ...]) -> Found:
    with Image.open(io.BytesIO(data), formats=formats) as image:
        check_area(image)
        return read(image)


def check_area(image: Image.Image) -> None:
    """Raises UnreadableError where a picture, of which only the header was read, has too many pixels."""
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(f"it has more than the limit of {MAX_PIXELS:,} pixels: {image.width}x{image.height}")


def _reason(error: Exception, data: bytes, formats: tuple[str, ...]) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "an empty file" if not data else f"not a picture in {', '.join(formats)}"
    return f"damaged: {str(error).strip() or type(error).__name__}"
