"""Encoded pictures without their metadata: where a text, a profile or EXIF cannot be read, the pixels still can."""

import struct
import zlib
from collections.abc import Iterator

_TIFF_STRUCTURE = frozenset(
    (*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339, 347, 530, 531, 532)
)
"""Tags without which the pixels cannot be read (TIFF 6.0): sizes, samples, compression, strips, tiles, palette, orientation."""


def without_metadata(data: bytes) -> Iterator[bytes]:
    """The file with all metadata but EXIF taken out, then without EXIF; nothing for a format that has none, or a damaged structure."""
    strip = next((strip for magic, strip in _STRIPPERS if data.startswith(magic)), None)
    tried = [data]
    for keep_exif in (True, False) if strip else ():
        try:
            bare = strip(data, keep_exif)  # pyright: ignore[reportOptionalCall]
        except (struct.error, IndexError, ValueError, OverflowError):
            return
        if bare not in tried:
            tried.append(bare)
            yield bare


def _png(data: bytes, keep_exif: bool) -> bytes:
    """Critical chunks and transparency; EXIF if its checksum is right (PNG specification, sections 5.3 and 11)."""
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        name, chunk = data[at + 4 : at + 8], data[at : at + length + 12]
        is_critical = not name[0] & 0x20
        is_exif = name == b"eXIf" and keep_exif and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if is_critical or name == b"tRNS" or is_exif:
            kept.append(chunk)
        at += length + 12
    return b"".join(kept)


def _jpeg(data: bytes, keep_exif: bool) -> bytes:
    """All segments but APP1 to APP13, APP15, comments, and those of JFIF (APP0) and Adobe (APP14: the colours) that are too short to be
    one (ITU T.81, B.1.1)."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xDA:  # the scan, and all that follows
            break
        length = struct.unpack_from(">H", data, at + 2)[0]
        segment = data[at : at + 2 + length]
        is_exif = marker == 0xE1 and segment[4:10] == b"Exif\0\0" and keep_exif
        is_short = length < {0xE0: 16, 0xEE: 14}.get(marker, 2)
        if is_exif or not (is_short or 0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(segment)
        at += 2 + length
    return b"".join((*kept, data[at:]))


def _webp(data: bytes, keep_exif: bool) -> bytes:
    """Less the chunks ICCP, XMP and EXIF, and their flags in VP8X (RFC 9649, section 2.7)."""
    if data[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    dropped = {b"ICCP": 0x20, b"XMP ": 0x04} | ({} if keep_exif else {b"EXIF": 0x08})
    kept, at = [], 12
    while at + 8 <= len(data):
        name, length = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        chunk = data[at : at + 8 + length + (length & 1)]
        if name == b"VP8X":
            chunk = chunk[:8] + bytes((chunk[8] & ~sum(dropped.values()),)) + chunk[9:]
        if name not in dropped:
            kept.append(chunk)
        at += 8 + length + (length & 1)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes, keep_exif: bool) -> bytes:
    """The first directory again at the end of the file, with the tags of the structure alone; orientation counts as EXIF."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    offset_at, offset_form, count_form, size = (8, "Q", "Q", 20) if is_big else (4, "I", "H", 12)
    start = struct.unpack_from(order + offset_form, data, offset_at)[0]
    count = struct.unpack_from(order + count_form, data, start)[0]
    first = start + struct.calcsize(count_form)
    kept = []
    for at in range(first, min(first + count * size, len(data)), size):
        tag = struct.unpack_from(f"{order}H", data, at)[0]
        if tag in _TIFF_STRUCTURE and (keep_exif or tag != 274):
            kept.append(data[at : at + size])
    body = data + b"\0" * (len(data) & 1)
    directory = struct.pack(order + count_form, len(kept)) + b"".join(kept) + struct.pack(order + offset_form, 0)
    head = body[:offset_at] + struct.pack(order + offset_form, len(body))
    return head + body[len(head) :] + directory


_STRIPPERS = ((b"\x89PNG\r\n\x1a\n", _png), (b"\xff\xd8", _jpeg), (b"RIFF", _webp), (b"II", _tiff), (b"MM", _tiff))
