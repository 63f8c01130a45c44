"""`model.show` and `amradio show`: colours that teacher and student share, heat, masks, and the page."""

import numpy as np
import pytest
import torch
from PIL import Image

from amradio import distill, embed, load, read_image
from amradio.__main__ import main
from amradio.data.scenes import Scenes
from amradio.drawing.panels import Panel, heat, label, overlay, principal_components, sheet
from amradio.errors import UserError
from amradio.features import Features
from amradio.model import EmbeddedSet
from amradio.model.showing import Prompts, panels, worth_drawing
from amradio.teachers.base import Teacher


def test_components_are_those_of_the_covariance_and_do_not_depend_on_signs():
    draws = torch.Generator().manual_seed(0)
    spatial = torch.randn(6, 5, 16, generator=draws) * torch.linspace(3, 0.1, 16)
    found = principal_components(spatial)
    cells = spatial.flatten(0, 1)
    _, vectors = torch.linalg.eigh(torch.cov(cells.T))
    alike = (found.directions.T @ vectors[:, -3:].flip(1)).abs()
    assert torch.allclose(alike, torch.eye(3), atol=1e-3)
    assert torch.allclose(found.colours(spatial), principal_components(spatial.clone()).colours(spatial))
    assert (found.directions.gather(0, found.directions.abs().argmax(0, keepdim=True)) > 0).all()
    assert torch.equal(principal_components(torch.ones(2, 2, 2)).colours(torch.ones(2, 2, 2)), torch.zeros(2, 2, 3))


def test_a_teacher_and_a_student_that_agree_have_equal_colours():
    spatial = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(1))
    components = principal_components(spatial)
    assert torch.equal(components.colours(spatial), components.colours(spatial.clone()))
    assert not torch.allclose(components.colours(spatial), components.colours(-spatial))


def test_heat_is_red_where_values_are_large_and_a_mask_is_coloured_inside_alone():
    image = torch.full((3, 8, 8), 0.5)
    drawn = heat(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), image, 0.0, 1.0)
    assert drawn[0, 7, 0] > drawn[0, 0, 0]
    assert drawn[0, 7, 0] > drawn[0, 7, 2]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4] = True
    drawn = overlay(mask, image)
    assert torch.equal(drawn[4:], image.permute(1, 2, 0)[4:])
    assert not torch.allclose(drawn[:4], image.permute(1, 2, 0)[:4])


def test_masks_everywhere_are_drawn_the_largest_first_and_grain_is_left_out():
    masks = torch.zeros(4, 20, 20, dtype=torch.bool)
    masks[0, :4] = True
    masks[1, :10] = True
    masks[2, 0, 0] = True
    masks[3] = True
    assert torch.equal(worth_drawing(masks), masks[[1, 0]])
    assert len(worth_drawing(masks[:0])) == 0


def test_a_teacher_sees_a_large_picture_as_small_as_the_student_does():
    """Else the teacher would have 187,500 tokens of a telephone's photograph (12 megapixels), and its attention never end."""

    sizes = []

    class Seeing(Teacher):
        def encode(self, images):
            sizes.append(tuple(images.shape[-2:]))
            return Features(torch.ones(1, 4), torch.rand(1, 3, 4, 128, generator=torch.Generator().manual_seed(0)))

    teacher = Seeing(mean=(0, 0, 0), std=(1, 1, 1), patch_size=8, dims=(4, 128), input_size=None, licence="", source="")
    model = load("embedded/quickstart")
    panels(model, torch.rand(3, 600, 800), {"dino": teacher}, Prompts())
    panels(model, torch.rand(3, 600, 800), {"dino": teacher}, Prompts(), size=128)
    assert model.config.image_size == 64
    assert sizes == [(64, 88), (128, 168)]


def test_a_sheet_has_a_row_for_each_kind():
    panel = Panel("picture", "a title " * 9, Image.new("RGB", (256, 100)))
    one, two = sheet([panel]), sheet([panel, panel, panel._replace(row="text")])
    assert two.width > one.width
    assert two.height > 1.8 * one.height


@pytest.mark.slow
def test_a_run_is_shown_beside_its_teachers(recipe, pictures, tmp_path, capsys):
    folder = distill(recipe("stages.0.steps=1", "evaluate.every=null", "data.val=null"))
    some = sorted(pictures.rglob("*.jpg"))[:2]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in some))
    words = ["show", str(folder), str(tmp_path / "list.txt"), "--click", "5", "6", "--box", "1", "1", "20", "20", "--everywhere"]
    assert main([*words, "--out", str(tmp_path / "shown")]) == 0, capsys.readouterr().err
    page = (tmp_path / "shown" / "index.html").read_text()
    assert len(list((tmp_path / "shown").glob("*.png"))) == 2
    for name in ("clip", "dino", "sam"):
        assert page.count(f"head {name}, student") == page.count(f"head {name}, teacher") == 4, "the text below, and for screen readers"
    assert "mask of 1 click, predicted IoU" in page
    assert "mask of 1 box, predicted IoU" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is loaded from elsewhere"
    assert main(["show", str(folder), str(some[0]), "--out", str(pictures)]) == 2
    assert "is not empty and no page of `amradio show`" in capsys.readouterr().err
    (tmp_path / "broken.jpg").write_bytes(some[0].read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    broken = [str(tmp_path / name) for name in ("broken.jpg", "empty.jpg")]
    assert main(["show", str(folder), broken[0], str(some[1]), broken[1], "--out", str(tmp_path / "several")]) == 0
    assert capsys.readouterr().err.count("warning: left out: ") == 2
    assert len(list((tmp_path / "several").glob("*.png"))) == 1
    assert main(["show", str(folder), *broken, "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert main(["show", str(folder), str(some[0]), "--out", str(tmp_path / "none"), "--click", "5000", "1"]) == 2
    assert not (tmp_path / "none").exists()
    capsys.readouterr()
    model = load(folder)
    check_neighbours(model, folder, some, tmp_path, capsys)
    assert model.show(some[0]).width > 256
    with pytest.raises(UserError, match="points: 1 of them outside the image"):
        model.show(some[0], points=[(5000, 1)])


def check_neighbours(model, folder, some, tmp_path, capsys):
    """The nearest images of a set that `amradio embed` wrote, on the page and in Python; another model's set is refused."""
    images = str(some[0].parent)
    for name in ("set.safetensors", "set.parquet"):
        embed(folder, images, tmp_path / name, num_workers=0)
    found, same = (EmbeddedSet.read(tmp_path / name, images).nearest(model, some[0], 3) for name in ("set.safetensors", "set.parquet"))
    assert found[0].key == some[0].name
    assert found[0].similarity > 0.99
    assert [neighbour.key for neighbour in same] == [neighbour.key for neighbour in found]
    words = ["show", str(folder), str(some[0]), "--out", str(tmp_path / "near"), "--neighbours"]
    assert main([*words, str(tmp_path / "set.safetensors"), images]) == 0
    page = (tmp_path / "near" / "index.html").read_text()
    assert f"neighbour 1, {some[0].name}: cosine " in page
    assert page.count("neighbour 4, ") == 2, "the text below, and for screen readers"
    assert main([*words, str(tmp_path / "none.safetensors"), images]) == 2
    assert "there is no such file" in capsys.readouterr().err
    model.config = model.config.model_copy(update={"image_size": 40})
    with pytest.raises(UserError, match="embedded by another model"):
        model.show(some[0], neighbours=EmbeddedSet.read(tmp_path / "set.safetensors", images))


def test_a_picture_that_cannot_be_drawn_is_named_and_left_out(tmp_path, capsys):
    Image.new("RGB", (3000, 4)).save(tmp_path / "strip.png")
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "square.png")
    pictures = [str(tmp_path / name) for name in ("strip.png", "square.png")]
    assert main(["show", "embedded/photos", *pictures, "--out", str(tmp_path / "shown")]) == 0
    printed = capsys.readouterr()
    assert "warning: left out: strip.png: 3000x4 px: one side is more than 16 times the other" in printed.err
    assert "teacher of head lite0: not drawn" in printed.err
    assert printed.out.startswith("1 picture ->")
    assert [path.name for path in (tmp_path / "shown").glob("*.png")] == ["001_square.png"]
    assert main(["show", "embedded/photos", pictures[0], "--out", str(tmp_path / "other")]) == 2
    assert "error: image: 3000x4 px" in capsys.readouterr().err


def test_a_larger_size_gives_maps_of_more_cells(tmp_path, capsys):
    Image.new("RGB", (80, 40), (200, 30, 30)).save(tmp_path / "wide.png")
    words = ["show", "embedded/quickstart", str(tmp_path / "wide.png"), "--out", str(tmp_path / "shown")]
    for size, cells in (([], "8 x 16"), (["--size", "128"], "16 x 32")):
        assert main([*words, *size]) == 0
        assert f"backbone, student: {cells} cells" in (tmp_path / "shown" / "index.html").read_text(encoding="utf-8")
    for size in ("0", "-3", "70000"):
        assert main([*words, "--size", size]) == 2
        assert f"--size: should be px from 1 to 65,536, found {size}" in capsys.readouterr().err


def test_masks_bear_the_name_of_the_text_that_they_fit_best():
    """The names of the best of two texts are those of `name_masks`; one text alone leaves nothing to choose from."""
    scene = Image.fromarray(Scenes(3, seed=5, image_size=128).image(1))
    model = load("embedded/quickstart")
    image = read_image(scene)[0]
    texts = ["a green square", "a red disc", "a purple ring"]

    def masks_of(*texts):
        return [panel for panel in panels(model, image, {}, Prompts(texts, [(60, 70)], [(5, 5, 120, 120)])) if panel.row == "masks"]

    named, plain = masks_of(*texts), masks_of(texts[0])
    assert [("names: the text that fits best" in panel.title) for panel in (*named, *plain)] == [True, True, False, False]
    masks = model.masks("sam")(scene, points=[[60, 70]]).masks[:, 0]
    best = int(model.text("clip").name_masks(scene, masks, texts)[0].argmax())
    cosine = float(model.text("clip").name_masks(scene, masks, texts).max())
    expected = label(plain[0].picture.copy(), masks, [f"{texts[best]} {cosine:.2f}"], plain[0].picture.width / 128)
    assert expected.tobytes() == named[0].picture.tobytes()
    assert expected.tobytes() != plain[0].picture.tobytes()


def test_a_mask_without_a_pixel_is_said_to_be_empty(monkeypatch):
    model = load("embedded/quickstart")
    image, prompts = torch.rand(3, 64, 64), Prompts((), [(20, 20)])
    (drawn,) = (panel for panel in panels(model, image, {}, prompts) if panel.row == "masks")
    assert "no pixel" not in drawn.title
    decoder = type(model.masks("sam"))
    decode = decoder.__call__

    def empty(*args, **words):
        found = decode(*args, **words)
        return found._replace(masks=torch.zeros_like(found.masks))

    monkeypatch.setattr(decoder, "__call__", empty)
    (drawn,) = (panel for panel in panels(model, image, {}, prompts) if panel.row == "masks")
    assert drawn.title.endswith("by head sam; no pixel is in it")


def test_names_in_one_place_stand_below_one_another():
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[:2, 20:40, 20:40] = True  # the third is empty
    blank = Image.new("RGB", (256, 256))
    both = np.asarray(label(blank.copy(), masks, ["one", "one", "none"], 4.0)).any(2).any(1)
    single = np.asarray(label(blank.copy(), masks[:1], ["one"], 4.0)).any(2).any(1)
    assert both.sum() == 2 * single.sum()
