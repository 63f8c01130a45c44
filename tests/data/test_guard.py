"""The guarded reader: bounded before memory is taken, regular files only, and metadata cost nothing but themselves."""

import io
import multiprocessing
import os
import re
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from amradio.data import decode as decoding
from amradio.data import full_images as whole
from amradio.data import guard
from amradio.data.decode import crop_and_resize, decode, decode_ids, picture_size
from amradio.data.full_images import open_images, whole_images
from amradio.data.guard import MAX_PIXELS, UnreadableError, read_file
from amradio.errors import UserError
from amradio.evaluation.reading import Broken, windows
from amradio.labelled.base import ImageSet
from amradio.labelled.classification import ImageFolderSettings
from amradio.labelled.paired_files import read_ids
from amradio.labelled.segmentation import ImagesLabelsSettings
from data_folders import jpeg
from evaluations import read_all

PIXELS = np.random.default_rng(0).integers(0, 255, (36, 48, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(image: Image.Image = PICTURE, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if checksum is None else checksum)


def with_chunk(data: bytes, added: bytes, at_end: bool = False) -> bytes:
    """A PNG with one more chunk, behind its header or before its end."""
    place = len(data) - 12 if at_end else 33
    return data[:place] + added + data[place:]


def text(value: str, international: bool = False) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    (info.add_itxt if international else info.add_text)("workflow", value, zip=True)
    return info


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """A JPEG with one more segment in front."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def with_tag(data: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """A little-endian TIFF whose first directory has one more tag, in the place of its last."""
    start = struct.unpack_from("<I", data, 4)[0]
    number = struct.unpack_from("<H", data, start)[0]
    entries = [data[start + 2 + 12 * each : start + 14 + 12 * each] for each in range(number)]
    entries = sorted([*entries, struct.pack("<HHII", tag, kind, count, value)], key=lambda entry: struct.unpack_from("<H", entry)[0])
    place = len(data) + len(data) % 2
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return data[:4] + struct.pack("<I", place) + data[8:].ljust(place - 8, b"\0") + directory


BAD_EXIF = (
    b"Exif\0\0\x00\x08\x00\x02\x01\x12\x00\x03",
    b"Exif\0\0junkjunkjunk",
    b"Exif\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*" + b"\0\0\0\x08\xff\xff" + b"\x01\x12\x00\x03" * 20,
)
METADATA: dict[str, bytes] = {
    **{f"PNG exif {number}": encoded(exif=exif) for number, exif in enumerate(BAD_EXIF)},
    **{f"WebP exif {number}": encoded(form="WEBP", lossless=True, exif=exif) for number, exif in enumerate(BAD_EXIF)},
    "PNG long text": encoded(pnginfo=text("a" * 2_000_000)),
    "PNG long international text": encoded(pnginfo=text("a" * 2_000_000, international=True)),
    "PNG long profile": encoded(icc_profile=b"p" * 3_000_000),
    "PNG much text": with_chunk(encoded(), 70 * chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1_000_000))),
    "PNG long text behind": with_chunk(encoded(), chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 3_000_000)), at_end=True),
    "PNG text that is not compressed": with_chunk(encoded(), chunk(b"zTXt", b"k\0\0nothing")),
    "PNG unknown compression": with_chunk(encoded(), chunk(b"zTXt", b"k\0\x07abc")),
    "PNG wrong checksum": with_chunk(encoded(), chunk(b"tEXt", b"k\0v", checksum=0)),
    "PNG short chunks": with_chunk(encoded(), chunk(b"pHYs", b"\0") + chunk(b"gAMA", b"") + chunk(b"sRGB", b"") + chunk(b"cHRM", b"\0")),
    "PNG raw exif": with_chunk(encoded(), chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      4\nzzzz")),
    "PNG profile that is none": with_chunk(encoded(), chunk(b"iCCP", b"no end")),
    "TIFF exif far away": with_tag(encoded(form="TIFF"), 34665, 4, 1, 0xFFFFFF00),
    "TIFF profile far away": with_tag(encoded(form="TIFF"), 34675, 7, 0x7FFFFFFF, 0xFFFFFF00),
    "TIFF text far away": with_tag(encoded(form="TIFF"), 270, 2, 0x7FFFFFFF, 0xFFFFFF00),
    "TIFF resolution of 0 / 0": with_tag(encoded(form="TIFF"), 282, 5, 1, 0),
    "TIFF resolution of another kind": with_tag(encoded(form="TIFF"), 296, 2, 4, 0x41414141),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", METADATA)
def test_metadata_cost_nothing_but_themselves(name: str, tmp_path: Path) -> None:
    assert np.array_equal(decode(METADATA[name]), PIXELS)
    assert crop_and_resize(METADATA[name], lambda width, height: (0, 0, 32, 32), 16).shape == (16, 16, 3)
    (tmp_path / "a").write_bytes(METADATA[name])
    assert picture_size(tmp_path / "a") == (48, 36)


SEGMENTS = (
    *((0xE1, exif) for exif in BAD_EXIF),
    *((0xE2, b"ICC_PROFILE\0\x07\x01abc"), (0xE2, b"MPF\0junk"), (0xED, b"Photoshop 3.0\08BIM\x04\x04")),
    *((0xE0, b"JFIF"), (0xFE, b"\xff" * 9), (0xEE, b"Adobe")),
)


@pytest.mark.parametrize(("marker", "content"), SEGMENTS)
def test_segments_of_jpeg_cost_nothing_but_themselves(marker: int, content: bytes) -> None:
    data = encoded(form="JPEG", quality=95)
    assert np.array_equal(decode(with_segment(data, marker, content)), decode(data))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_orientation_outlives_other_metadata(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(form=form, exif=exif)
    spoilt = (
        with_chunk(data, chunk(b"tEXt", b"k\0v", checksum=0)) if form == "PNG" else with_segment(data, 0xED, b"Photoshop 3.0\08BIM\x04\x04")
    )
    assert np.array_equal(decode(spoilt), decode(data))
    assert decode(spoilt).shape == (48, 36, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_what_is_cut_off_is_a_reason(form: str) -> None:
    data = encoded(form=form)
    for end in (0, 1, 11, 33, len(data) // 2):
        with pytest.raises(UnreadableError):
            decode(data[:end])


def header_of_png(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("read", [decode, decode_ids, lambda data: crop_and_resize(data, lambda width, height: (0, 0, 8, 8), 8)])
@pytest.mark.parametrize("side", [13_400, 100_000, 2**31 - 1])
def test_bombs_are_refused_from_their_header(side: int, read: Callable[[bytes], np.ndarray]) -> None:
    with pytest.raises(UnreadableError, match=f"more than the limit of {MAX_PIXELS:,} pixels"):
        read(header_of_png(side, side))


def test_a_bomb_among_labels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(header_of_png(20_000, 20_000))
    with pytest.raises(UserError, match=r"a\.png: the (label|image) cannot be read \(it has more than the limit"):
        ImagesLabelsSettings(path=str(tmp_path), classes=["x"]).build()


# --- memory by area


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "I;16", "CMYK"])
def test_large_pictures_are_converted_strip_by_strip(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels as at once; averaged over blocks where fewer will do."""
    image = PICTURE.resize((97, 61))
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    at_once = decode(data)
    monkeypatch.setattr(decoding, "STRIP", 97 * 7)
    assert np.array_equal(decode(data), at_once)
    monkeypatch.setattr(decoding, "LARGE", 97 * 61 // 9 + 1)
    reduced = np.asarray(Image.fromarray(at_once).reduce(3))
    assert np.array_equal(decode(data, least=16), reduced)
    assert np.array_equal(decode(data, most=97 * 61 // 9 + 1), reduced)
    assert decode(data, least=40).shape == (61, 97, 3), "the short side keeps what was asked for"
    cut, whole_way = (crop_and_resize(data, lambda width, height: (10, 5, 60, 55), 8, full) for full in (False, True))
    assert np.abs(cut.astype(int) - whole_way).mean() < 6


WAYS: dict[str, Callable[[bytes], np.ndarray]] = {
    "least": lambda data: decode(data, 448),
    "crop": lambda data: crop_and_resize(data, lambda width, height: (0, 0, width, height), 64),
    "ids": decode_ids,
}


def measure(path: Path, way: str, answer: multiprocessing.SimpleQueue) -> None:
    """MiB that the peak of this process grows by, in a fork of its own."""
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](data)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("mode", "way", "most"), [("RGB", "least", 130), ("RGBA", "crop", 130), ("P", "ids", 70)])
def test_memory_is_that_of_one_copy(mode: str, way: str, most: float, tmp_path: Path) -> None:
    """4,200 px square: 67 MiB as Pillow holds RGB, 17 MiB of indices."""
    Image.new(mode, (4200, 4200)).save(tmp_path / "a.png", compress_level=1)
    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=measure, args=(tmp_path / "a.png", way, answer))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answer.get() < most


def test_a_chunk_of_large_images_is_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    expected = [(image.key, image.image.tolist()) for image in whole_images(open_images(tmp_path), range(2), None, 0)]
    monkeypatch.setattr(whole, "CHUNK_PIXELS", 48 * 36 * 3)
    reader = whole._Reader(whole._InOrder(open_images(tmp_path)), None, None)
    assert [image.is_deferred for image in reader.chunk(0)] == [False] * 3 + [True] * 5
    assert [(image.key, image.image.tolist()) for image in whole_images(open_images(tmp_path), range(2), None, 0)] == expected


def test_windows_of_evaluations_are_bounded_by_area(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("amradio.evaluation.reading.WINDOW_PIXELS", 100)
    items = [(number, torch.zeros(3, side, side)) for number, side in enumerate((5, 5, 5, 5, 5, 20, 9, 5))]
    assert [[number for number, _ in window] for window in windows(iter(items), 64)] == [[0, 1, 2, 3], [4], [5], [6], [7]]


# --- labels


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("form", ["grey", "palette", "tiff", "tiff inverted"])
def test_ids_are_read_as_they_are_stored(form: str, bits: int) -> None:
    """Packed by hand, as Pillow writes none of these: grey of 2 and 4 bits would be spread over 0 to 255."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 16), dtype=np.uint16)
    if form == "palette" and bits == 16:
        pytest.skip("a palette has 256 colours at most")
    packed = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(5, 16, 2), axis=2)[:, :, 16 - bits :].reshape(5, -1)
    rows = np.packbits(packed, axis=1)
    if form in ("grey", "palette"):
        header = struct.pack(">IIBBBBB", 16, 5, bits, 3 if form == "palette" else 0, 0, 0, 0)
        lines = b"".join(b"\0" + row.tobytes() for row in rows)
        palette = chunk(b"PLTE", bytes(range(256)) * 3) if form == "palette" else b""
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    else:
        inverted = form.endswith("inverted")
        if inverted and bits == 16:
            pytest.skip("Pillow reads no such file")
        stored = rows.tobytes()
        tags = [(256, 16), (257, 5), (258, bits), (259, 1), (262, 0 if inverted else 1), (273, 8), (277, 1), (278, 5), (279, len(stored))]
        entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
        start = 8 + len(stored) + len(stored) % 2
        data = b"MM" + struct.pack(">HI", 42, start) + stored.ljust(start - 8, b"\0") + struct.pack(">H", len(tags)) + entries + b"\0" * 4
    assert np.array_equal(decode_ids(data), values)


def test_ids_below_zero_are_no_class(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.full((4, 4), -1, dtype=np.int32)).save(tmp_path / "labels" / "a.tif")
    with pytest.raises(UserError, match="ids that are no class: -1"):
        ImagesLabelsSettings(path=str(tmp_path), classes=["x"]).build()
    (tmp_path / "labels" / "a.tif").write_bytes(METADATA["TIFF exif far away"])
    with pytest.raises(UserError, match="mode RGB"):
        read_ids(tmp_path / "labels" / "a.tif")


# --- what is no file


@pytest.fixture
def special(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    return {"a pipe": tmp_path / "pipe", "a folder": tmp_path / "folder", "a device": Path("/dev/zero"), "circle": tmp_path / "loop"}


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "circle"])
def test_special_files_are_never_waited_for(kind: str, special: dict[str, Path], tmp_path: Path) -> None:
    path = special[kind]
    for read in (read_file, picture_size):
        with pytest.raises((UnreadableError, OSError), match="Too many levels" if kind == "circle" else f"{kind}, not a file"):
            read(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_ids(path)
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    (tmp_path / "list.txt").write_text(f"good.jpg\n{path}\n")
    images = list(whole_images(open_images(tmp_path / "list.txt"), [0], None, 0))
    assert [image.image is None for image in images] == [False, True]


def test_an_image_that_becomes_a_pipe_while_a_run_goes_on(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg(1))
    source, images = open_images(tmp_path), ImageFolderSettings(path=str(tmp_path)).build()
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    assert [image.reason for image in whole_images(source, [0], None, 0)] == ["a pipe, not a file", ""]
    broken = Broken()
    assert [number for number, _ in read_all(images, broken)] == [1]
    assert broken.reasons == {"a.jpg": "a pipe, not a file"}


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BYTES", 1000)
    (tmp_path / "a").write_bytes(b"x" * 1000)
    assert len(read_file(tmp_path / "a")) == 1000
    assert read_file(tmp_path / "a", 998, 1000) == b"xx"
    with pytest.raises(UnreadableError, match="more than the limit of 1,000"):
        read_file(tmp_path / "a", 0, 1001)
    (tmp_path / "a").write_bytes(b"x" * 1001)
    with pytest.raises(UnreadableError, match="more than the limit of 1,000"):
        read_file(tmp_path / "a")
    with pytest.raises(UnreadableError, match="not a name"):
        read_file("a\0b")


# --- sizes in tar shards


def member(name: str, size: int, data: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


GOOD = member("good.jpg", len(jpeg(1)), jpeg(1))


def negative(name: str) -> bytes:
    """A header with a size of -1024 in base 256, and its checksum."""
    header = bytearray(member(name, 0)[:512])
    header[124:136] = (2**96 - 1024).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def pax(content: dict[str, str]) -> bytes:
    info = tarfile.TarInfo("big.jpg")
    info.pax_headers = content
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (member("big.jpg", 7 * 10**11, b"x" * 1000), "ends within this image"),
        (member("big.jpg", 2**62, b"x" * 1000), "ends within this image|leads to byte"),
        (member("big.jpg", 5000, b"x" * 1000), "ends within this image"),
        (negative("big.jpg") + b"\0" * 1024, "states a size of -1024|broken after"),
        (pax({"size": "700000000000"}) + b"x" * 1000, "ends within this image"),
        (pax({"size": "-5000"}), "states a size|broken after"),
        (member("././@LongLink", 7 * 10**11)[:156] + b"L" + member("././@LongLink", 7 * 10**11)[157:], "broken after"),
        (pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "700000000000"}) + b"9\n" * 100, "broken after"),
        (b"junk" * 1000, "broken after"),
        (member("cut.jpg", 100)[:200], "broken after"),
    ],
)
def test_sizes_that_lie_cost_their_own_image(tail: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(GOOD + tail)
    source = open_images(tmp_path / "s.tar")
    images = list(whole_images(source, [0], None, 0))
    assert images[0].image is not None
    assert any(re.search(reason, image.reason) for image in images[1:]), images[1:]
    assert all(image.image is None for image in images[1:])


def test_a_large_hole_is_not_read_into_memory(tmp_path: Path) -> None:
    """A file of 3 GB on a few kB of disk, all of which one member claims."""
    (tmp_path / "s.tar").write_bytes(GOOD + member("big.jpg", 3 * 10**9))
    os.truncate(tmp_path / "s.tar", 3 * 10**9 + 10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = list(whole_images(open_images(tmp_path / "s.tar"), [0], None, 0))
    assert [image.reason[:40] for image in images] == ["", "3,000,000,000 bytes are more than the li"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_an_image_set_of_the_users_own_may_return_arrays() -> None:
    class Arrays(ImageSet):
        def __len__(self) -> int:
            return 2

        def describe(self) -> str:
            return "two arrays"

        def key(self, index: int) -> str:
            return str(index)

        def read(self, index: int) -> np.ndarray:
            return PIXELS

    assert [image.shape for _, image in read_all(Arrays(), Broken())] == [(3, 36, 48)] * 2
