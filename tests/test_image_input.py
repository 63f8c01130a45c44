"""From a picture to the model: files, Pillow images, arrays and tensors; what is refused, and how it says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import amradio
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.image_input import check_range
from amradio.recipe import Recipe
from amradio.teachers import EmbeddedSettings
from amradio.training.initialization import network_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> amradio.Model:
    """A tiny ViT, trained at 32 px, with the heads of the embedded teachers."""
    teachers = {name: EmbeddedSettings.model_validate({"name": name}).build() for name in ("clip", "dino", "sam")}
    recipe = Recipe.load(
        "teachers={clip: {type: embedded, name: clip}, dino: {type: embedded, name: dino}, sam: {type: embedded, name: sam}}",
        "data.train=scenes",
        "student={type: vit, dim: 32, depth: 1, num_heads: 2, patch_size: 8, max_image_size: 64}",
        "stages.0.partitions.0.image_size=32",
        "out=unused",
    )
    config = network_config(recipe, teachers)
    path = tmp_path_factory.mktemp("model")
    write_folder(path, config, config.build(), {"step": 1, "num_steps": 1, "data": "scenes", "agreement": {}})
    return amradio.load(path)


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 [40, 60, 3], smooth, so that JPEG keeps it nearly."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 2], -1).astype(np.uint8)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


# read_image


def test_every_kind_of_picture_gives_the_same_tensor(pixels, tmp_path, monkeypatch):
    wanted = as_tensor(pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    files = [tmp_path / "a.png", str(tmp_path / "a.png"), "~/a.png"]
    images = [Image.fromarray(pixels), Image.open(tmp_path / "a.png"), pixels, pixels[::-1][::-1]]
    tensors = [tensor, tensor[None], wanted, wanted[0], wanted[0].permute(1, 2, 0).numpy(), wanted.double()]
    for picture in (*files, *images, *tensors):
        found = amradio.read_image(picture)
        assert (found.shape, found.dtype) == ((1, 3, 40, 60), torch.float32)
        assert torch.allclose(found, wanted, atol=1e-6), type(picture)


def test_grey_palette_transparency_and_sixteen_bits(pixels, tmp_path):
    grey = pixels[..., 0]
    for picture in (grey, grey[..., None], Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        assert torch.allclose(amradio.read_image(picture), as_tensor(np.stack([grey] * 3, -1)), atol=1e-6)
    clear = np.dstack([pixels, np.zeros_like(grey)])
    for picture in (clear, Image.fromarray(clear), Image.fromarray(clear).convert("LA")):
        assert torch.equal(amradio.read_image(picture), torch.ones(1, 3, 40, 60))  # transparency is laid on white
    palette = Image.fromarray(pixels).quantize(256)
    assert torch.allclose(amradio.read_image(palette), as_tensor(np.array(palette.convert("RGB"))), atol=1e-6)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_orientation_is_applied(turn, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    from PIL import ImageOps

    upright = as_tensor(np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))))
    assert torch.equal(amradio.read_image(tmp_path / "a.png"), upright)
    assert torch.equal(amradio.read_image(Image.open(tmp_path / "a.png")), upright)


def test_sizes(pixels):
    assert amradio.read_image(pixels, 20).shape == (1, 3, 20, 30)
    assert amradio.read_image(pixels, (24, 32)).shape == (1, 3, 24, 32)
    assert amradio.read_image(torch.rand(4, 3, 10, 20), 5).shape == (4, 3, 5, 10)
    found = amradio.read_image(pixels, (20, 30))
    wanted = torch.nn.functional.interpolate(as_tensor(pixels), (20, 30), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(found, wanted, atol=1e-6)
    line = torch.rand(3, 2, 400)
    assert amradio.read_image(line).shape == amradio.read_image(line, (2, 400)).shape == (1, 3, 2, 400)
    with pytest.raises(UserError, match="400x2 px: one side is more than 16 times the other"):
        amradio.read_image(line, 224)
    for size in (0, -3, 2.5, "20", (20,), (20, 0), True, 10**9):
        with pytest.raises(UserError, match="size: expected px of the short side"):
            amradio.read_image(pixels, size)


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path):
    y, x = np.mgrid[0:640, 0:960]
    large = np.stack([x // 4, y // 3, 255 - x // 8], -1).astype(np.uint8)
    Image.fromarray(large).save(tmp_path / "a.jpg", quality=95)
    found = amradio.read_image(tmp_path / "a.jpg", 64)
    whole = amradio.read_image(Image.open(tmp_path / "a.jpg"), 64)
    assert found.shape == whole.shape == (1, 3, 64, 96)
    assert (found - whole).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("missing.jpg", "missing.jpg: no such file or directory; give the path of an image file"),
        ("text.jpg", "text.jpg: it cannot be read as a picture: not a picture in JPEG"),
        (3, "image: expected a path, a Pillow image, a uint8 array [H, W, 3] or a tensor [3, H, W], found int"),
        (np.zeros((3, 8, 9), np.uint8), "found uint8 [3, 8, 9]; the channels come last: array.transpose(1, 2, 0)"),
        (np.zeros((8, 9, 3), np.int64), "image: expected an array [H, W, 3] of uint8, or of floats in [0, 1], found int64 [8, 9, 3]"),
        (torch.zeros(8, 9, 3), "found float32 [8, 9, 3]; the channels come first: image.permute(2, 0, 1)"),
        (torch.zeros(3, 8, 9, dtype=torch.int32), "uint8 or float in [0, 1], found int32 [3, 8, 9]"),
        (torch.full((3, 8, 9), 200.0), "found values from 200 to 200; these look like pixels of 0 to 255: divide by 255"),
        (np.full((8, 9, 3), 200.0), "these look like pixels of 0 to 255"),
    ],
    ids=range(9),
)
def test_what_is_no_picture_is_refused_with_the_reason(picture, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("this is no picture")
    with pytest.raises(UserError) as caught:
        amradio.read_image(picture)
    assert message in str(caught.value)


# model.features


@pytest.mark.slow
def test_features_of_a_file_are_those_of_the_resized_tensor(model, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = model.features(tmp_path / "a.png", heads=["clip", "sam"])
    images = amradio.read_image(pixels, model.nearest_size(32, 48))  # the short side at 32 px, the size of the training
    wanted = model(images, heads=["clip", "sam"])
    assert found.keys() == wanted.keys() == {"backbone", "clip", "sam"}
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])
    plain = model.features(pixels)
    assert isinstance(plain, amradio.Features)
    torch.testing.assert_close(plain, wanted["backbone"])
    assert not plain.summary.requires_grad
    assert not plain.summary.is_inference()


def test_features_at_other_sizes_and_of_several(model, pixels):
    own = model.features(pixels, size="own").spatial
    assert own.shape[1:3] == tuple(side // 8 for side in model.nearest_size(40, 60))
    assert model.features(pixels, size=(16, 64)).spatial.shape[1:3] == (2, 8)
    both = model.features([pixels, pixels[:, ::-1]], "clip")["clip"]
    assert both.summary.shape[0] == 2
    torch.testing.assert_close(both.summary[:1], model.features(pixels, "clip")["clip"].summary, rtol=1e-4, atol=1e-5)
    assert model.features(torch.rand(5, 3, 32, 32)).summary.shape[0] == 5
    with pytest.raises(UserError, match=r"they differ \(32 x 32, 32 x 48 px\); give size=\(height, width\)"):
        model.features([pixels, pixels[:, :40]])
    assert model.features([pixels, pixels[:, :40]], size=(32, 32)).summary.shape[0] == 2
    with pytest.raises(UserError, match="there is none"):
        model.features([])


def test_features_agree_with_embeddings(model, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (batch,) = amradio.embeddings(model, tmp_path, heads=["clip"])
    torch.testing.assert_close(batch.features["clip"], model.features(tmp_path / "a.png", "clip")["clip"])


# what model(...) takes


def test_a_text_is_one_head(model):
    images = torch.rand(1, 3, 32, 32)
    assert model(images, heads="clip").keys() == {"backbone", "clip"}
    assert model(images, "clip").keys() == model(images, ["clip", "clip"]).keys()
    assert model.pack([images[0]], heads="clip")[0].keys() == {"backbone", "clip"}
    for wrong in ("clp", ["clp"]):
        with pytest.raises(UserError, match=r"^heads: there is no head 'clp'; did you mean 'clip'"):
            model(images, heads=wrong)


@pytest.mark.slow
def test_a_text_is_one_head_wherever_heads_are_taken(model, pixels, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    write_folder(tmp_path / "model", model.config, model.network, {"step": 1, "num_steps": 1, "data": "scenes", "agreement": {}})
    (batch,) = amradio.embeddings(model, tmp_path / "photos", heads="clip")
    assert batch.features.keys() == {"backbone", "clip"}
    amradio.embed(tmp_path / "model", tmp_path / "photos", tmp_path / "a.safetensors", heads="clip", num_workers=0)
    assert "clip.summary" in load_file(tmp_path / "a.safetensors")
    amradio.export(tmp_path / "model", "amradio", tmp_path / "exported", heads="clip")
    assert amradio.load(tmp_path / "exported").heads == ("clip",)
    for call in (
        lambda: amradio.embed(tmp_path / "model", tmp_path / "photos", tmp_path / "b.safetensors", heads="clp", num_workers=0),
        lambda: amradio.export(tmp_path / "model", "amradio", tmp_path / "other", heads="clp"),
        lambda: list(amradio.embeddings(model, tmp_path / "photos", heads="clp")),
        lambda: model.text("clp"),
        lambda: model.masks("clp"),
    ):
        with pytest.raises(UserError, match=r"^heads: there is no head 'clp'; did you mean 'clip'"):
            call()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.jpg", "found str; read pictures with amradio.read_image(...), or call model.features(...)"),
        (Image.new("RGB", (32, 32)), "found PIL.Image; read pictures with amradio.read_image"),
        (np.zeros((1, 3, 32, 32), np.float32), "found numpy.ndarray; read pictures"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "found uint8 [1, 3, 32, 32]; amradio.read_image takes uint8, or divide by 255"),
        (torch.zeros(3, 32, 32), "found float32 [3, 32, 32]; add the batch: images[None]"),
        (torch.zeros(1, 32, 32, 3), "the channels come before height and width: images.permute(0, 3, 1, 2)"),
        (torch.zeros(32, 32, 3), "the channels come before height and width: images.permute(2, 0, 1)"),
        (torch.zeros(1, 4, 32, 32), "expected float [B, 3, H, W] in [0, 1], found float32 [1, 4, 32, 32]"),
        (torch.rand(1, 3, 32, 32) * 255, "these look like pixels of 0 to 255"),
        (torch.randn(1, 3, 32, 32) * 2, "these look normalized already"),
        (torch.full((1, 3, 32, 32), 1.05), "clamp them to 0 and 1"),
        (torch.full((1, 3, 32, 32), float("nan")), "not finite"),
    ],
    ids=range(12),
)
def test_what_is_no_batch_is_refused_with_the_way_to_mend_it(model, images, message):
    with pytest.raises(UserError) as caught:
        model(images)
    assert message in str(caught.value)
    if isinstance(images, torch.Tensor) and images.ndim == 4:
        with pytest.raises(UserError, match=r"\(number 1\)"):
            model.pack([torch.rand(3, 32, 32), images[0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_range_is_checked_in_every_float_type(dtype, model):
    images = torch.rand(1, 3, 32, 32).to(dtype)
    assert model(images).summary.shape[0] == 1
    with pytest.raises(UserError, match="pixels of 0 to 255"):
        model(images * 255)


def test_rounding_beyond_the_range_is_no_mistake():
    check_range(torch.tensor([-1e-6, 1 + 1e-6]))
    check_range(torch.zeros(0, 3, 8, 8))


def test_normalised_images_are_taken_where_the_model_was_told_so(model, pixels):
    import copy

    other = copy.deepcopy(model)
    normalise = other.external_preprocessing()
    images = amradio.read_image(pixels, (32, 48))
    torch.testing.assert_close(other(normalise(images)), model(images))


def test_a_model_is_described_in_one_line(model):
    assert repr(model) == (
        f"Model(vit small, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, patch 8 px, trained at 32 px, "
        "float32 on cpu, heads: clip, dino, sam)"
    )


def test_a_model_without_heads_says_so(model):
    bare = amradio.Model(model.config.model_copy(update={"heads": {}}), model.network)
    assert repr(bare).endswith("no heads)")
    with pytest.raises(UserError, match=r"^heads: there is no head 'clip'; this model has no heads, only its backbone$"):
        bare(torch.rand(1, 3, 32, 32), heads="clip")


def test_masks_of_a_file_a_pillow_image_and_an_array(model, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    masks = model.masks("sam")
    wanted = masks(torch.from_numpy(pixels).permute(2, 0, 1), points=[[20, 10]])
    assert wanted.masks.shape == (1, 1, 40, 60)
    for picture in (tmp_path / "a.png", Image.fromarray(pixels), pixels, masks.look(pixels)):
        torch.testing.assert_close(masks(picture, points=[[20, 10]]), wanted)
    with pytest.raises(UserError, match="one picture"):
        masks.look(torch.rand(2, 3, 40, 60))


# text maps


@pytest.mark.slow
def test_text_maps_of_the_embedded_clip(model, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = model.text("clip")
    found = words.map(tmp_path / "a.png", ["a red circle", "a blue square"])
    clip = model.features(pixels, "clip")["clip"]
    assert found.shape == (1, 2, *clip.spatial.shape[1:3])
    tower = EmbeddedSettings(name="clip").build().model
    cells = tower.visual_projection(tower.vision_model.post_layernorm(clip.spatial))
    wanted = torch.nn.functional.cosine_similarity(cells[..., None, :], words(["a red circle", "a blue square"]), dim=-1)
    torch.testing.assert_close(found, wanted.permute(0, 3, 1, 2))
    assert words.map([pixels, pixels], "a dog", size=(32, 32)).shape == (2, 1, 4, 4)
    with pytest.raises(UserError, match="no text encoder"):
        model.text("dino")
