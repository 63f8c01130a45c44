"""Pictures of every mode, format and orientation become upright RGB; broken ones become a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from amradio.data.decode import MAX_PIXELS, UnreadableError, centre_box, crop_and_resize, decode, random_box, stored_box


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth, and different in its four corners and three channels."""
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    channels = (40 + 180 * x + 0 * y, 220 - 160 * y + 0 * x, 60 + 120 * x * y + 30 * np.sin(9 * x + 5 * y))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 2),
        ("JPEG", {"quality": 95, "progressive": True}, 2),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_formats(form, options, tolerance):
    found = decode(encoded(picture(), form, **options))
    assert found.dtype == np.uint8
    assert difference(found, np.asarray(picture())) <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_modes(mode):
    source = picture()
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(source, to_lab)
        assert image is not None
    else:
        image = source.convert(mode)
    form = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    found = decode(encoded(image, form))
    assert found.shape == (64, 96, 3)
    # What a palette or one bit loses was lost before; JPEG and the round trip through LAB lose a little.
    expected = image.convert("RGB") if mode in ("1", "P", "L", "LA") else source
    assert difference(found, np.asarray(expected)) < (3 if form != "PNG" else 0.01)


def test_alpha_is_laid_on_white():
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert (decode(encoded(image)) == 255).all()
    image.putalpha(128)
    half = (np.asarray(picture()).astype(int) + 255) // 2
    assert difference(decode(encoded(image)), half) <= 1
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0, 0, 0] * 4)
    assert (decode(encoded(palette, transparency=3)) == 255).all()
    assert (decode(encoded(palette)) == 0).all()


def test_sixteen_bits_become_eight():
    grey = np.linspace(0, 65535, 96 * 64).astype(np.uint16).reshape(64, 96)
    expected = np.repeat(np.rint(grey / 257)[..., None], 3, axis=-1)
    for form in ("PNG", "TIFF"):
        assert difference(decode(encoded(Image.fromarray(grey), form)), expected) == 0
    assert difference(decode(big_endian_tiff(grey)), expected) == 0
    assert difference(decode(encoded(Image.fromarray(grey.astype(np.int32)), "TIFF")), expected) == 0


def big_endian_tiff(grey: np.ndarray) -> bytes:
    height, width = grey.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, grey.size * 2)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    return b"MM" + struct.pack(">HI", 42, 8 + grey.size * 2) + grey.astype(">u2").tobytes() + directory


def test_pixels_without_an_agreed_range_are_refused():
    floats = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    with pytest.raises(UnreadableError, match="no agreed range"):
        decode(encoded(floats, "TIFF"))
    wide = Image.fromarray(np.full((4, 4), 70000, dtype=np.int32))
    with pytest.raises(UnreadableError, match="32-bit"):
        decode(encoded(wide, "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_animated_pictures_the_first_frame(form):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert difference(decode(data), np.asarray(frames[0])) < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn, form):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    data = encoded(picture(), form, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert difference(decode(data), np.asarray(upright)) == 0
    # A corner of the upright picture, through the cropping path.
    found = crop_and_resize(data, lambda w, h: (w - 30, 5, w, 35), 30)
    assert difference(found, np.asarray(upright)[5:35, -30:]) <= 1
    wide = crop_and_resize(data, lambda w, h: (w - 30, 5, w, 25), (20, 30))
    assert difference(wide, np.asarray(upright)[5:25, -30:]) <= 1


@pytest.mark.parametrize("turn", range(1, 9))
def test_stored_box_undoes_the_turn(turn):
    stored = np.arange(5 * 7).reshape(5, 7).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    with Image.open(io.BytesIO(encoded(Image.fromarray(stored), exif=exif))) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    height, width = upright.shape
    left, top, right, bottom = stored_box((1, 2, 4, 5), turn, width, height)
    assert sorted(stored[top:bottom, left:right].ravel()) == sorted(upright[2:5, 1:4].ravel())


@pytest.mark.parametrize("grey", [False, True])
def test_decoding_at_a_reduced_scale_is_close_to_full(grey):
    rng = np.random.default_rng(0)
    rough = np.asarray(Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize((1000, 800), Image.Resampling.BICUBIC))
    image = Image.fromarray(np.clip(rough + rng.normal(0, 8, rough.shape), 0, 255).astype(np.uint8))
    data = encoded(image.convert("L") if grey else image, "JPEG", quality=90)
    for side, size in ((700, 64), (300, 64), (230, 64), (500, 160)):
        fast = crop_and_resize(data, lambda w, h, side=side: (101, 33, 101 + side, 33 + side), size)
        slow = crop_and_resize(data, lambda w, h, side=side: (101, 33, 101 + side, 33 + side), size, full=True)
        assert difference(fast, slow) < 2.5  # of 255; a shift by one output pixel is 8 or more here
        assert difference(fast[1:], slow[:-1]) > 2 * difference(fast, slow)


def test_the_scale_is_reduced_only_as_far_as_the_crop_allows(monkeypatch):
    asked = []
    real = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda self, mode, size: asked.append(size) or real(self, mode, size))
    data = encoded(picture(960, 640), "JPEG")
    for side, expected in ((512, (120, 80)), (511, (240, 160)), (128, (480, 320)), (127, None), (20, None)):
        asked.clear()
        crop_and_resize(data, lambda w, h, side=side: (0, 0, side, side), 64)
        assert asked == ([expected] if expected else [])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_broken_pictures_have_a_reason(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    data = encoded(noise, form)
    for broken in (data[: len(data) // 2], data[:20], data[:2], b"", b"\0" * 500, b"<html>not found</html>"):
        with pytest.raises(UnreadableError, match=r"\w"):
            decode(broken)
        with pytest.raises(UnreadableError, match=r"\w"):
            crop_and_resize(broken, centre_box, 16)


def test_bombs_are_refused_from_their_header():
    side = int(MAX_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    with pytest.raises(UnreadableError, match=r"[Bb]omb|more than the limit"):
        decode(bomb)


def test_random_box_is_the_box_of_torchvision():
    """Areas and aspects agree with torchvision's in mean and spread over 2,000 boxes, and all lie inside."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scale, ratio, (width, height) = (0.4, 1.0), (3 / 4, 4 / 3), (300, 200)
    ours, theirs = [], []
    for _ in range(2000):
        left, top, right, bottom = random_box(rng.random(24), scale, ratio, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        ours.append((left, top, right - left, bottom - top))
        i, j, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), list(scale), list(ratio))
        theirs.append((j, i, w, h))
    a, b = np.array(ours), np.array(theirs)
    np.testing.assert_allclose(a.mean(0), b.mean(0), atol=3)
    np.testing.assert_allclose(a.std(0), b.std(0), atol=3)


def test_random_box_of_a_very_long_picture():
    for width, height in ((1000, 10), (10, 1000), (1, 1), (3, 1)):
        left, top, right, bottom = random_box(np.full(24, 0.5), (0.4, 1.0), (3 / 4, 4 / 3), width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert crop_and_resize(encoded(picture(width, height)), lambda w, h: (0, 0, w, h), 8).shape == (8, 8, 3)
